/* A plugin whose flush asks what any plugin may: see context.h. */

#define ASK_NAME
#include "context.h"
