/* The Python inside the library: it starts once and never ends. cgd.c includes this file. */
#include <dlfcn.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>

typedef PyThreadState *python_lock;

#define INSTALL_AGAIN "install the library again with `cgd-deploy install-native`"
#define PYTHON_RELEASE TEXT(PY_MAJOR_VERSION) "." TEXT(PY_MINOR_VERSION) "."

/* A thread that waits must not hold Python's lock, which a host with a Python may have taken. */
static python_lock release_lock(void) {
    return Py_IsInitialized() && PyGILState_Check() ? PyEval_SaveThread() : NULL;
}

static void take_lock(python_lock released) {
    if (released) PyEval_RestoreThread(released);
}

static char start_error[CGD_MESSAGE]; /* "" if Python runs */

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

/* Run build_embedded.BOOT. It writes the reason of a failed import into `problem`. */
static void import_packages(int joined) {
    PyObject *names = Py_BuildValue("{s:O,s:i}", "__builtins__", PyEval_GetBuiltins(), "joined", joined);
    PyObject *done = names ? PyRun_String(PYTHON_BOOT, Py_file_input, names, names) : NULL;
    const char *problem = done ? PyBytes_AsString(PyDict_GetItemString(names, "problem")) : NULL;
    if (!problem || *problem)
        fail(CGD_INTERNAL, "Python cannot import the library (%.500s); " INSTALL_AGAIN ".",
             problem ? problem : "there is no memory left");
    PyErr_Clear();
    Py_XDECREF(done);
    Py_XDECREF(names);
}

/* Before Python 3.12, cffi uses one of Python's version tags as a lock, and waits for ever if the tag is in use. */
static void connect_functions(void) {
#if PY_VERSION_HEX < 0x030C0000
    PyType_Modified(&PyCapsule_Type);
#endif
    if (cffi_start_python()) fail(CGD_INTERNAL, "the library could not start, see stderr; " INSTALL_AGAIN ".");
}

/* Python's symbols become visible to its extension modules, also if the host loaded this library with RTLD_LOCAL. */
static void publish_symbols(void) {
    Dl_info python;
    if (dladdr((void *)Py_IsInitialized, &python)) dlopen(python.dli_fname, RTLD_LAZY | RTLD_NOLOAD | RTLD_GLOBAL);
}

/* Leaves a sentence in last_error if Python cannot be used. */
static void start_once(void) {
    int joined = Py_IsInitialized();
    if (joined && strncmp(Py_GetVersion(), PYTHON_RELEASE, strlen(PYTHON_RELEASE))) {
        fail(CGD_INTERNAL, "this process runs Python %.*s; " INSTALL_AGAIN " by that Python.",
             (int)strcspn(Py_GetVersion(), " "), Py_GetVersion());
        return;
    }
    if (!joined) {
        publish_symbols();
        PyStatus status = initialize_python();
        if (PyStatus_Exception(status)) {
            fail(CGD_INTERNAL, "Python cannot start (%s); " INSTALL_AGAIN ".", status.err_msg);
            return;
        }
        import_signal();
    }
    PyGILState_STATE state = PyGILState_Ensure();
    import_packages(joined);
    if (!*last_error) connect_functions();
    PyGILState_Release(state);
    if (!joined) PyEval_SaveThread();
}

static void start(void) {
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    static atomic_int tried;
    if (tried) return;
    PyThreadState *released = release_lock();
    pthread_mutex_lock(&lock);
    if (!tried) {
        start_once();
        memcpy(start_error, last_error, sizeof start_error);
    }
    tried = 1;
    pthread_mutex_unlock(&lock);
    take_lock(released);
}
