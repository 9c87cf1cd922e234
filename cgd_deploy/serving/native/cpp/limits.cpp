#include "limits.hpp"

#include "failure.hpp"
#include "formats.hpp"

#include <algorithm>
#include <array>
#include <mutex>
#include <utility>

namespace cgd {

namespace {

struct Size {
    const char *name;
    std::uint64_t Limits::*member;
};

constexpr std::array<Size, 6> SIZES = {{{"pixels", &Limits::pixels},
                                        {"picture_bytes", &Limits::picture_bytes},
                                        {"list_bytes", &Limits::list_bytes},
                                        {"engine_bytes", &Limits::engine_bytes},
                                        {"manifest_bytes", &Limits::manifest_bytes},
                                        {"onnx_bytes", &Limits::onnx_bytes}}};
constexpr const char *KNOWN =
    "pixels, picture_bytes, formats, list_bytes, listed_anywhere, engine_bytes, manifest_bytes, onnx_bytes";
constexpr std::size_t MOST_DIGITS = 19;  // 20 digits may exceed 64 bits

struct Shared {
    std::mutex mutex;
    Limits limits;
};

Shared &shared() {
    static Shared state;
    return state;
}

const Size *size_named(const std::string &name) {
    const auto *found = std::find_if(SIZES.begin(), SIZES.end(), [&](const Size &size) { return name == size.name; });
    return found == SIZES.end() ? nullptr : found;
}

[[noreturn]] void refuse(const std::string &name, const std::string &value, const std::string &expected) {
    throw Failure(CGD_INVALID_ARGUMENT,
                  "limit " + name + "=" + value + " cannot be used; expected one like " + expected + ".");
}

std::uint64_t whole_number(const std::string &name, const std::string &value, std::uint64_t fallback) {
    const bool digits = std::all_of(value.begin(), value.end(), [](char c) { return c >= '0' && c <= '9'; });
    if (value.empty() || !digits || value.size() > MOST_DIGITS)
        refuse(name, "'" + value + "'", std::to_string(fallback));
    const std::uint64_t number = std::stoull(value);
    if (number < 1) refuse(name, "0", std::to_string(fallback));
    return number;
}

bool yes_or_no(const std::string &name, const std::string &value) {
    if (value != "yes" && value != "no") refuse(name, "'" + value + "'", "yes or no");
    return value == "yes";
}

// The formats between commas, each once, by Pillow's names.
std::vector<std::string> formats_of(const std::string &value) {
    std::vector<std::string> formats;
    for (std::size_t start = 0; start <= value.size();) {
        const std::size_t end = std::min(value.find(',', start), value.size());
        std::string format = format_name(value.substr(start, end - start));
        if (std::find(formats.begin(), formats.end(), format) == formats.end()) formats.push_back(std::move(format));
        start = end + 1;
    }
    return formats;
}

void change(Limits &limits, const std::string &name, const std::string &value) {
    if (const Size *size = size_named(name))
        limits.*(size->member) = whole_number(name, value, Limits().*(size->member));
    else if (name == "formats")
        limits.formats = formats_of(value);
    else if (name == "listed_anywhere")
        limits.listed_anywhere = yes_or_no(name, value);
    else
        throw Failure(CGD_INVALID_ARGUMENT, "limit '" + name + "' is unknown; expected one of " + KNOWN + ".");
}

// 1234567 as "1,234,567".
std::string with_commas(std::uint64_t number) {
    std::string text = std::to_string(number);
    for (std::size_t place = text.size(); place > 3;) text.insert(place -= 3, ",");
    return text;
}

}  // namespace

Limits limits() {
    const std::lock_guard<std::mutex> lock(shared().mutex);
    return shared().limits;
}

void set_limit(const std::string &name, const std::string &value) {
    const std::lock_guard<std::mutex> lock(shared().mutex);
    change(shared().limits, name, value);
}

void check_size(const std::string &what, std::uint64_t size, const char *limit, cgd_status status) {
    const std::string name = limit;
    const Size *known = size_named(name);
    if (known == nullptr) throw Failure(CGD_INTERNAL, "there is no limit " + name + ".");
    const std::uint64_t most = limits().*(known->member);
    if (size <= most) return;
    const std::string unit = name.substr(name.find('_') + 1);
    throw Failure(status, what + " has " + with_commas(size) + " " + unit + " and the limit " + name + " is " +
                              with_commas(most) + "; check where it comes from, or allow it with `cgd-deploy --limit " +
                              name + "=" + std::to_string(size) + "`.");
}

}  // namespace cgd
