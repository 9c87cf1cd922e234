/* The library without Python: inside.h is implemented in cpp/. */
#include "inside.h"

typedef int python_lock;

static const char start_error[] = "";

static void start(void) {}

static python_lock release_lock(void) { return 0; }

static void take_lock(python_lock released) { (void)released; }

#include "cgd.c"
