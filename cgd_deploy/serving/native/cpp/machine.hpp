// This machine: the cores that the process may use, and the instruction sets of the CPU.
#ifndef CGD_MACHINE_HPP
#define CGD_MACHINE_HPP

#include <cstddef>
#include <string>
#include <vector>

namespace cgd {

// Cores of the CPU affinity, capped by the smallest quota of the process's cgroups (v1 and v2); at least 1.
std::size_t available_threads();

std::string cpu_name();

// The instruction sets that decide INT8 and BF16, as Linux names them, within the limit of ONEDNN_MAX_CPU_ISA.
std::vector<std::string> instruction_sets();

// Whether the CPU adds products of 8-bit integers in 32 bits in one instruction.
bool has_fast_int8();

}  // namespace cgd

#endif
