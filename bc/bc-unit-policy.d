bc/unit/policy: tests/unit/policy.c policy.h tests/unit/unit.h

policy.h:

tests/unit/unit.h:
