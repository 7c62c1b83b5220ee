bc/unit/latency: tests/unit/latency.c latency.h tests/unit/unit.h

latency.h:

tests/unit/unit.h:
