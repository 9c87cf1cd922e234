"""The C ABI: cgd.h and cgd.hpp, and two libraries behind them: one is C++ on OpenVINO, the other runs Python."""
