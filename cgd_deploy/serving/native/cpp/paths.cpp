#include "paths.hpp"

#include <filesystem>
#include <map>
#include <stdexcept>

namespace cgd {
namespace {

// A byte 0x80 to 0xff is U+DC80 to U+DCFF in Python's text; here it is U+10FF80 to U+10FFFF.
constexpr const char *PYTHONS = "\\udc", *OURS = "\\udbff\\udf", *OURS_IN_UTF8 = "\xf4\x8f\xbe",
                     *ALSO_OURS = "\xf4\x8f\xbf";

bool is_high_surrogate(const std::string &json, std::size_t at) {
    const auto letter = [&](std::size_t i) { return char(json[i] | 0x20); };
    return json[at] == '\\' && letter(at + 1) == 'u' && letter(at + 2) == 'd' &&
           std::string_view("89ab").find(letter(at + 3)) != std::string_view::npos;
}

// The folder `name` of an index in `folder`, with a slash at its end unless it is the current folder.
std::string prefix(const std::string &name, const std::string &folder) {
    namespace fs = std::filesystem;
    fs::path path = (fs::path(folder) / name / "").lexically_normal();
    if (path.begin() != path.end() && *path.begin() == "..") path = (fs::current_path() / path).lexically_normal();
    const std::string text = path.string();
    return text == "./" || text == "." ? "" : text;
}

}  // namespace

std::string with_marked_bytes(const std::string &json) {
    if (json.find(OURS) != std::string::npos) throw std::invalid_argument("a path with letters that this library uses");
    std::string marked;
    for (std::size_t i = 0; i < json.size(); i++) {
        if (json[i] != '\\' || i + 1 >= json.size()) {
            marked += json[i];
        } else if (json.compare(i, 4, PYTHONS) == 0 && i + 6 <= json.size() && json[i + 4] >= '8') {
            marked += OURS + json.substr(i + 4, 2);
            i += 5;
        } else {  // a pair of surrogates or another escape
            const std::size_t size = i + 12 <= json.size() && is_high_surrogate(json, i) ? 12 : 2;
            marked += json.substr(i, size);
            i += size - 1;
        }
    }
    return marked;
}

std::string file_name(const std::string &text) {
    std::string name;
    for (std::size_t i = 0; i < text.size(); i++) {
        const bool low = text.compare(i, 3, OURS_IN_UTF8) == 0, high = text.compare(i, 3, ALSO_OURS) == 0;
        if ((low || high) && i + 3 < text.size()) {
            name += char((low ? 0x80 : 0xc0) | (text[i + 3] & 0x3f));
            i += 3;
        } else {
            name += text[i];
        }
    }
    if (name.find('\0') != std::string::npos) throw std::invalid_argument("a path with a zero byte");
    return name;
}

std::vector<std::string> paths_from_here(const std::vector<std::string> &names, const std::string &folder) {
    std::map<std::string, std::string> prefixes;  // a gallery of a million pictures has few folders
    std::vector<std::string> paths;
    for (const std::string &name : names) {
        const std::size_t cut = name.rfind('/');
        const std::string parent = cut == std::string::npos ? "" : name.substr(0, std::max<std::size_t>(cut, 1));
        auto known = prefixes.find(parent);
        if (known == prefixes.end()) known = prefixes.emplace(parent, prefix(parent, folder)).first;
        paths.push_back(known->second + name.substr(cut == std::string::npos ? 0 : cut + 1));
    }
    return paths;
}

}  // namespace cgd
