// The messages of the library, for the function of cgd_set_log.
#ifndef CGD_LOG_HPP
#define CGD_LOG_HPP

#include <cgd.h>

#include <string>

namespace cgd {

// Waits for a running call of the function before.
void set_log(cgd_log log, void *context, int least);

void write_log(cgd_log_level level, const std::string &message);

}  // namespace cgd

#endif
