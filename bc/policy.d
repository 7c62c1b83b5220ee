bc/policy.o: policy.c policy.h

policy.h:
