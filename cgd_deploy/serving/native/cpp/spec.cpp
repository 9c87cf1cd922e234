#include "spec.hpp"

#include <nlohmann/json.hpp>

#include <algorithm>
#include <array>
#include <cmath>
#include <set>
#include <stdexcept>

namespace cgd {
namespace {

using Json = nlohmann::json;

constexpr std::size_t LONGEST = 1 << 16, LONGEST_TEXT = 60;
constexpr std::uint32_t SMALLEST_SIDE = 32, LARGEST_SIDE = 4096;
constexpr std::array FIELDS{"backbone",   "color", "descriptors",   "dim",    "gem_eps",  "gem_p",
                            "input_size", "mean",  "no_downsample", "resize", "space_id", "std"};

[[noreturn]] void refuse(const std::string &what) {
    throw std::invalid_argument(what);
}

void expect(bool is_right, const Json &fields, const char *name, const char *expected) {
    if (!is_right)
        refuse(std::string(name) + "=" + fields.at(name).dump().substr(0, LONGEST_TEXT) +
               " of the model's spec must be " + expected);
}

bool is_whole(const Json &value, std::uint64_t least, std::uint64_t most) {
    return value.is_number_unsigned() && value.get<std::uint64_t>() >= least && value.get<std::uint64_t>() <= most;
}

bool is_finite(const Json &value) {
    return value.is_number() && std::isfinite(value.get<double>());
}

bool are_three(const Json &values, double above) {
    return values.is_array() && values.size() == 3 && std::all_of(values.begin(), values.end(), [&](const Json &value) {
               return is_finite(value) && value.get<double>() > above;
           });
}

bool is_short_text(const Json &value) {
    if (!value.is_string()) return false;
    const auto &text = value.get_ref<const std::string &>();
    const auto letters = std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xc0) != 0x80; });  // UTF-8
    return std::size_t(letters) <= LONGEST_TEXT;
}

bool are_descriptors(const Json &value) {
    if (!value.is_string()) return false;
    const auto &letters = value.get_ref<const std::string &>();
    const std::set<char> different(letters.begin(), letters.end());
    return !letters.empty() && different.size() == letters.size() &&
           letters.find_first_not_of("SMG") == std::string::npos;
}

void check_fields(const Json &fields) {
    if (!fields.is_object()) refuse("the model's spec is not a table of fields");
    for (const char *name : FIELDS)
        if (!fields.contains(name)) refuse(std::string("the model's spec lacks ") + name + "");
    if (fields.size() > FIELDS.size()) refuse("the model's spec has unknown fields; a newer cgd-deploy wrote it");
}

}  // namespace

Spec read_spec(const Json &fields) {
    check_fields(fields);
    expect(are_descriptors(fields["descriptors"]), fields, "descriptors", "S, M and G in any order, each at most once");
    for (const char *name : {"backbone", "no_downsample", "space_id"})
        expect(is_short_text(fields[name]), fields, name, "a text of 60 characters at most");
    const std::size_t parts = fields["descriptors"].get_ref<const std::string &>().size();
    expect(is_whole(fields["dim"], 1, LONGEST) && fields["dim"].get<std::size_t>() % parts == 0, fields, "dim",
           "a multiple of the number of descriptors, up to 65536");
    expect(is_finite(fields["gem_p"]) && fields["gem_p"].get<double>() > 0, fields, "gem_p", "positive and finite");
    expect(is_finite(fields["gem_eps"]) && fields["gem_eps"].get<double>() >= 0 && fields["gem_eps"].get<double>() < 1,
           fields, "gem_eps", "between 0 and 1");
    const Json &size = fields["input_size"];
    expect(size.is_array() && size.size() == 2 && is_whole(size[0], SMALLEST_SIDE, LARGEST_SIDE) &&
               is_whole(size[1], SMALLEST_SIDE, LARGEST_SIDE),
           fields, "input_size", "height and width from 32 to 4096 pixels");
    expect(fields["color"] == "RGB", fields, "color", "RGB");
    expect(are_three(fields["mean"], -HUGE_VAL), fields, "mean", "three finite numbers");
    expect(are_three(fields["std"], 0), fields, "std", "three positive, finite numbers");
    Spec spec{fields["dim"], size[0], size[1], ResizeRule::parse(fields["resize"].get<std::string>()),
              fields["space_id"]};
    expect(spec.rule.shorter.value_or(LARGEST_SIDE) >= std::max(spec.height, spec.width), fields, "resize",
           "a rule whose shorter side is as long as the input's sides");
    return spec;
}

}  // namespace cgd
