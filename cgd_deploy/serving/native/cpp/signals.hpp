// Keeps the signals of the program away from threads of the library.
#ifndef CGD_SIGNALS_HPP
#define CGD_SIGNALS_HPP

#include <csignal>

namespace cgd {

// While it lives, threads that start handle no signals: handlers of the program run in threads of the program.
class NoSignals {
  public:
    NoSignals() {
        sigset_t all;
        sigfillset(&all);
        ::pthread_sigmask(SIG_BLOCK, &all, &before_);
    }
    ~NoSignals() {
        ::pthread_sigmask(SIG_SETMASK, &before_, nullptr);
    }
    NoSignals(const NoSignals &) = delete;
    NoSignals &operator=(const NoSignals &) = delete;

  private:
    sigset_t before_{};
};

}  // namespace cgd

#endif
