/* The Python inside the library: it starts once and never ends. cgd.c includes this file.
 *
 * Every call enters and leaves Python here. When the process ends, calls are refused and running calls are waited for,
 * because exit() destroys static objects of the backends. */
#include <dlfcn.h>
#include <link.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <time.h>
#include <unistd.h>

#define INSTALL_AGAIN "install the library again with `cgd-deploy install-native`"
#define PYTHON_RELEASE TEXT(PY_MAJOR_VERSION) "." TEXT(PY_MINOR_VERSION) "."

static atomic_int process, running_calls, ending;
static _Thread_local int own_calls;
static char start_error[CGD_MESSAGE];

/* Python as it was when the library was installed: no variable, file or folder of the host changes it. */
static PyStatus initialize_python(void) {
    PyPreConfig early;
    PyPreConfig_InitIsolatedConfig(&early);
    early.utf8_mode = 1; /* file names keep their bytes in every locale */
    PyStatus status = Py_PreInitialize(&early);
    if (PyStatus_Exception(status)) return status;
    PyConfig config;
    PyConfig_InitIsolatedConfig(&config);
    config.site_import = 0;
    config.write_bytecode = 0;
    config.module_search_paths_set = 1;
    const struct {
        wchar_t **field;
        const char *text;
    } places[] = {
        {&config.executable, PYTHON_EXECUTABLE},         {&config.prefix, PYTHON_PREFIX},
        {&config.exec_prefix, PYTHON_EXEC_PREFIX},       {&config.base_prefix, PYTHON_BASE_PREFIX},
        {&config.base_exec_prefix, PYTHON_BASE_EXEC_PREFIX},
    };
    for (size_t i = 0; i < sizeof places / sizeof *places && !PyStatus_Exception(status); i++)
        status = PyConfig_SetBytesString(&config, places[i].field, places[i].text);
    const char *const folders[] = {PYTHON_FOLDERS};
    for (size_t i = 0; i < sizeof folders / sizeof *folders && !PyStatus_Exception(status); i++) {
        wchar_t *folder = Py_DecodeLocale(folders[i], NULL);
        status = folder ? PyWideStringList_Append(&config.module_search_paths, folder) : PyStatus_NoMemory();
        PyMem_RawFree(folder);
    }
    if (!PyStatus_Exception(status)) status = Py_InitializeFromConfig(&config);
    PyConfig_Clear(&config);
    return status;
}

/* The first import of _signal takes SIGINT from a host that has no handler. Give it back, with a SIGINT that came in
 * between. */
static void import_signal(void) {
    struct sigaction host;
    sigaction(SIGINT, NULL, &host);
    Py_XDECREF(PyImport_ImportModule("_signal"));
    sigaction(SIGINT, &host, NULL);
    if (PyErr_CheckSignals()) raise(SIGINT);
    PyErr_Clear();
}

/* Run install.BOOT, which says in `problem` what it could not import. */
static void import_packages(int joined) {
    PyObject *names = Py_BuildValue("{s:O,s:i}", "__builtins__", PyEval_GetBuiltins(), "joined", joined);
    PyObject *done = names ? PyRun_String(PYTHON_BOOT, Py_file_input, names, names) : NULL;
    const char *problem = done ? PyBytes_AsString(PyDict_GetItemString(names, "problem")) : NULL;
    if (!problem || *problem)
        snprintf(start_error, sizeof start_error, "Python cannot import the library (%.500s); " INSTALL_AGAIN ".",
                 problem ? problem : "out of memory");
    PyErr_Clear();
    Py_XDECREF(done);
    Py_XDECREF(names);
}

/* cffi takes a lock for which it uses a version tag of Python's before 3.12. A tag in use would make it wait for ever. */
static void connect_functions(void) {
#if PY_VERSION_HEX < 0x030C0000
    PyType_Modified(&PyCapsule_Type);
#endif
    if (cffi_start_python())
        snprintf(start_error, sizeof start_error, "the library could not start, for the reason on stderr; " INSTALL_AGAIN ".");
}

/* Python's symbols become visible to its extension modules, also if the host loaded this library with RTLD_LOCAL. */
static void publish_symbols(void) {
    Dl_info python;
    if (dladdr((void *)Py_IsInitialized, &python)) dlopen(python.dli_fname, RTLD_LAZY | RTLD_NOLOAD | RTLD_GLOBAL);
}

static void start_once(void) {
    int joined = Py_IsInitialized();
    if (joined && strncmp(Py_GetVersion(), PYTHON_RELEASE, strlen(PYTHON_RELEASE))) {
        snprintf(start_error, sizeof start_error, "this process runs Python %.20s; " INSTALL_AGAIN " by that Python.",
                 Py_GetVersion());
        return;
    }
    if (!joined) {
        publish_symbols();
        PyStatus status = initialize_python();
        if (PyStatus_Exception(status)) {
            snprintf(start_error, sizeof start_error, "Python cannot start (%s); " INSTALL_AGAIN ".", status.err_msg);
            return;
        }
        import_signal();
    }
    PyGILState_STATE state = PyGILState_Ensure();
    import_packages(joined);
    if (!*start_error) connect_functions();
    PyGILState_Release(state);
    if (!joined) PyEval_SaveThread();
}

/* A thread that waits must not hold Python's lock, which a host with a Python may have taken. */
static PyThreadState *release_lock(void) {
    return Py_IsInitialized() && PyGILState_Check() ? PyEval_SaveThread() : NULL;
}

static void take_lock(PyThreadState *released) {
    if (released) PyEval_RestoreThread(released);
}

static void start(void) {
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    static atomic_int tried;
    if (tried) return;
    PyThreadState *released = release_lock();
    pthread_mutex_lock(&lock);
    if (!tried) start_once();
    tried = 1;
    pthread_mutex_unlock(&lock);
    take_lock(released);
}

/* Refuse further calls and wait for the running ones. A signal handler may call exit() inside a call, which cannot be
 * waited for; a child of fork() has none of the threads. */
static void shut_down(void) {
    if (process != getpid()) return;
    PyThreadState *released = release_lock();
    ending = 1;
    while (running_calls > own_calls) nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
    take_lock(released);
}

static int count_loads(struct dl_phdr_info *info, size_t size, void *loads) {
    (void)size;
    *(unsigned long long *)loads = info->dlpi_adds;
    return 1;
}

/* exit() runs the handler that was registered last first, and the destructor of a static object is such a handler.
 * So register shut_down again when libraries were loaded, and after 1, 2, 4, ... calls, which may construct more. */
static void stay_last_registered(void) {
    static atomic_ullong known_loads;
    static atomic_size_t calls;
    unsigned long long loads = 0;
    dl_iterate_phdr(count_loads, &loads);
    if (atomic_exchange(&known_loads, loads) != loads) calls = 0;
    size_t count = calls++;
    if ((count & (count - 1)) == 0) atexit(shut_down);
}

static cgd_status leave(cgd_status status) {
    own_calls--;
    running_calls--;
    return status;
}

/* CGD_OK if Python can be called; the caller has to leave then. */
static cgd_status enter(void) {
    int nobody = 0, here = getpid();
    if (atomic_compare_exchange_strong(&process, &nobody, here)) atexit(shut_down);
    if (process != here)
        return fail(CGD_INVALID_ARGUMENT, "this process is a fork of one that used the library; start it anew (exec).");
    running_calls++;
    own_calls++;
    if (ending) return leave(fail(CGD_SHUTTING_DOWN, "the process ends; make no more calls."));
    start();
    return *start_error ? leave(fail(CGD_INTERNAL, "%s", start_error)) : CGD_OK;
}

/* The status of a function of embedded.py, which gives a status plus one, or 0 if it did not come to its end. */
static cgd_status finished(int given) {
    stay_last_registered();
    if (given > 0) return leave((cgd_status)(given - 1));
    return leave(fail(CGD_INTERNAL, "the library could not do this, for the reason on stderr."));
}

#define IN_PYTHON(call)                                    \
    ({                                                     \
        cgd_status entered = enter();                      \
        entered == CGD_OK ? finished(call) : entered;      \
    })
