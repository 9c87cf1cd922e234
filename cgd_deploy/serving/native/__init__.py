"""The C ABI: cgd.h and cgd.hpp, and libcgd.so, which runs the Python runtime inside a C or C++ program."""
