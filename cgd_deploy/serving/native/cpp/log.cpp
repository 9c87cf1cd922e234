#include "log.hpp"

#include <atomic>
#include <mutex>

namespace cgd {
namespace {

std::mutex mutex;  // held while the function runs
cgd_log function = nullptr;
void *context_of_function = nullptr;
std::atomic<int> least_level{CGD_LOG_ERROR + 1};

}  // namespace

void set_log(cgd_log log, void *context, int least) {
    const std::lock_guard lock(mutex);
    function = log, context_of_function = context, least_level = log ? least : CGD_LOG_ERROR + 1;
}

void write_log(cgd_log_level level, const std::string &message) {
    if (level < least_level) return;
    const std::lock_guard lock(mutex);
    if (level >= least_level) function(context_of_function, level, message.c_str());
}

}  // namespace cgd
