// A failure that a function of cgd.h reports: a status, and one sentence that says what is wrong and what to do.
#ifndef CGD_FAILURE_HPP
#define CGD_FAILURE_HPP

#include <cgd.h>

#include <stdexcept>
#include <string>

namespace cgd {

struct Failure : std::runtime_error {
    Failure(cgd_status status, const std::string &sentence) : std::runtime_error(sentence), status(status) {}
    cgd_status status;
};

}  // namespace cgd

#endif
