#include "machine.hpp"

#include <algorithm>
#include <array>
#include <cctype>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <map>
#include <optional>
#include <sched.h>
#include <set>
#include <sstream>
#include <sys/utsname.h>

namespace cgd {
namespace {

constexpr std::array WANTED{"avx2",     "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16",
                            "amx_int8", "amx_bf16", "asimddp", "i8mm"};
const std::set<std::string> FAST_INT8{"avx_vnni", "avx512_vnni", "amx_int8", "i8mm"};
const std::map<std::string, std::set<std::string>> ONEDNN_ALLOWS{
    {"sse41", {}},
    {"avx", {}},
    {"avx2", {"avx2"}},
    {"avx2_vnni", {"avx2", "avx_vnni"}},
    {"avx2_vnni_2", {"avx2", "avx_vnni"}},
    {"avx512_core", {"avx2", "avx512f"}},
    {"avx512_core_vnni", {"avx2", "avx512f", "avx512_vnni"}},
    {"avx512_core_bf16", {"avx2", "avx512f", "avx512_vnni", "avx512_bf16"}},
    {"avx512_core_fp16", {"avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16"}}};

std::vector<std::string> lines_of(const std::string &path) {
    std::ifstream file(path);
    std::vector<std::string> lines;
    for (std::string line; std::getline(file, line);) lines.push_back(line);
    return lines;
}

std::vector<std::string> split(const std::string &text, char separator) {
    std::vector<std::string> parts;
    std::istringstream stream(text);
    for (std::string part; std::getline(stream, part, separator);) parts.push_back(part);
    return parts;
}

bool has_cpu(const std::string &controllers) {
    const auto names = split(controllers, ',');
    return std::find(names.begin(), names.end(), "cpu") != names.end();
}

// proc(5) writes space, tab, line end and backslash as \040, \011, \012 and \134.
std::string unescaped(const std::string &text) {
    std::string plain;
    for (std::size_t i = 0; i < text.size(); i++) {
        const bool octal = text[i] == '\\' && i + 3 < text.size() &&
                           std::all_of(&text[i + 1], &text[i + 4], [](char c) { return c >= '0' && c <= '7'; });
        plain += octal ? char((text[i + 1] - '0') << 6 | (text[i + 2] - '0') << 3 | (text[i + 3] - '0')) : text[i];
        if (octal) i += 3;
    }
    return plain;
}

// This process's cgroup by version, from lines such as "0::/user.slice" and "4:cpu,cpuacct:/docker/1f".
std::map<int, std::string> own_cgroups() {
    std::map<int, std::string> found;
    for (const std::string &line : lines_of("/proc/self/cgroup")) {
        const std::size_t first = line.find(':'), second = line.find(':', first + 1);
        if (second == std::string::npos) continue;
        const std::string controllers = line.substr(first + 1, second - first - 1);
        if (line.substr(0, first) == "0" && controllers.empty()) found[2] = line.substr(second + 1);
        if (has_cpu(controllers)) found[1] = line.substr(second + 1);
    }
    return found;
}

// `path` relative to the cgroup `top`; empty if it is not below.
std::string below(const std::string &path, const std::string &top) {
    const std::string prefix = top == "/" ? top : top + "/";
    if (path.compare(0, prefix.size(), prefix) != 0 || path.find("..") != std::string::npos) return "";
    return path.substr(prefix.size());
}

// The quota of one cgroup in cores, from v2's "quota period" or from v1's two files.
std::optional<double> quota_of(const std::string &folder) {
    auto words = lines_of(folder + "/cpu.max");
    if (words.empty())
        for (const char *name : {"quota", "period"})
            for (const std::string &line : lines_of(folder + "/cpu.cfs_" + name + "_us")) words.push_back(line);
    std::string text;
    for (const std::string &word : words) text += word + " ";
    std::istringstream stream(text);
    long long quota = 0, period = 0;
    if (!(stream >> quota >> period) || quota <= 0 || period <= 0) return std::nullopt;  // "max" among them
    return double(quota) / double(period);
}

// The smallest quota of the cgroup `group` below `folder`, and of its parents.
double smallest_quota(const std::string &folder, std::string group) {
    double smallest = HUGE_VAL;
    for (;;) {
        if (const auto quota = quota_of(folder + "/" + group)) smallest = std::min(smallest, *quota);
        if (group.empty()) return smallest;
        const std::size_t cut = group.rfind('/');
        group = cut == std::string::npos ? "" : group.substr(0, cut);
    }
}

// The smallest quota of this process in cores, infinite without one. A line of mountinfo is, for example,
// "31 23 0:28 /top /sys/fs/cgroup rw - cgroup2 cgroup rw", see proc(5).
double cpu_quota() {
    double smallest = HUGE_VAL;
    const auto own = own_cgroups();
    for (const std::string &line : lines_of("/proc/self/mountinfo")) {
        const std::size_t middle = line.find(" - ");
        if (middle == std::string::npos) continue;
        const auto where = split(line.substr(0, middle), ' '), how = split(line.substr(middle + 3), ' ');
        if (where.size() < 5 || how.size() < 3) continue;
        const int version = how[0] == "cgroup2" ? 2 : how[0] == "cgroup" && has_cpu(how[2]) ? 1 : 0;
        const auto group = own.find(version);
        if (group == own.end()) continue;
        smallest = std::min(smallest, smallest_quota(unescaped(where[4]), below(group->second, unescaped(where[3]))));
    }
    return smallest;
}

std::size_t cores_of_affinity() {
    cpu_set_t cores;
    CPU_ZERO(&cores);
    return ::sched_getaffinity(0, sizeof cores, &cores) == 0 ? std::size_t(CPU_COUNT(&cores)) : 1;
}

std::string onednn_limit() {
    // NOLINTBEGIN(concurrency-mt-unsafe): this library changes no variable
    const char *limit = std::getenv("ONEDNN_MAX_CPU_ISA");
    if (!limit) limit = std::getenv("DNNL_MAX_CPU_ISA");
    // NOLINTEND(concurrency-mt-unsafe)
    std::string name = limit ? limit : "";
    std::transform(name.begin(), name.end(), name.begin(), [](unsigned char c) { return char(std::tolower(c)); });
    return name;
}

}  // namespace

std::size_t available_threads() {
    const double cores = std::min(double(cores_of_affinity()), cpu_quota());
    return std::max<std::size_t>(1, std::size_t(cores));
}

std::string cpu_name() {
    for (const std::string &line : lines_of("/proc/cpuinfo"))
        if (line.compare(0, 10, "model name") == 0) return line.substr(line.find(':') + 2);
    struct utsname names{};
    return ::uname(&names) == 0 ? names.machine : "";
}

std::vector<std::string> instruction_sets() {
    const auto allowed = ONEDNN_ALLOWS.find(onednn_limit());
    for (const std::string &line : lines_of("/proc/cpuinfo")) {
        if (line.compare(0, 5, "flags") != 0 && line.compare(0, 8, "Features") != 0) continue;
        const auto words = split(line, ' ');
        const std::set<std::string> found(words.begin(), words.end());
        std::vector<std::string> sets;
        for (const char *name : WANTED)
            if (found.count(name) && (allowed == ONEDNN_ALLOWS.end() || allowed->second.count(name)))
                sets.emplace_back(name);
        return sets;
    }
    return {};
}

bool has_fast_int8() {
    const auto sets = instruction_sets();
    return std::any_of(sets.begin(), sets.end(), [](const std::string &name) { return FAST_INT8.count(name) != 0; });
}

}  // namespace cgd
