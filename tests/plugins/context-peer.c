/* A plugin whose flush asks for the client too: see context.h. */

#define ASK_NAME
#define ASK_PEER
#include "context.h"
