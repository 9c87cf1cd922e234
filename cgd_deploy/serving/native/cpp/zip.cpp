#include "zip.hpp"

#include <algorithm>
#include <cstdint>
#include <set>
#include <stdexcept>
#include <string_view>

namespace cgd {
namespace {

constexpr std::uint32_t END = 0x06054b50, ENTRY = 0x02014b50, MEMBER = 0x04034b50;
constexpr std::size_t END_SIZE = 22, ENTRY_SIZE = 46, MEMBER_SIZE = 30, LONGEST_COMMENT = 65535;
constexpr std::uint32_t ENCRYPTED = 1, LARGER = 0xffffffff;  // a size that only a zip64 record could hold

[[noreturn]] void refuse(const std::string &what) {
    throw std::invalid_argument(what);
}

std::uint32_t number(std::string_view bytes, std::size_t start, std::size_t size) {
    std::uint32_t value = 0;
    for (std::size_t i = size; i-- > 0;) value = value << 8 | std::uint8_t(bytes[start + i]);
    return value;
}

// The record at the end of the directory, with the comment behind it: the last one that reaches the end of the file.
std::string end_record(const File &file) {
    const std::size_t size = std::min(file.size(), END_SIZE + LONGEST_COMMENT);
    const std::string tail = file.read(file.size() - size, size);
    for (std::size_t comment = 0; comment + END_SIZE <= size; comment++) {
        const std::size_t start = size - END_SIZE - comment;
        if (number(tail, start, 4) == END && number(tail, start + 20, 2) == comment) return tail.substr(start);
    }
    refuse("it has no directory");
}

std::size_t content(const File &file, std::size_t start, const std::string &name, std::size_t size) {
    const std::string head = file.read(start, MEMBER_SIZE);
    if (number(head, 0, 4) != MEMBER) refuse("a member does not begin where the directory says");
    const std::size_t name_size = number(head, 26, 2), begin = start + MEMBER_SIZE + name_size + number(head, 28, 2);
    if (file.read(start + MEMBER_SIZE, name_size) != name) refuse("a member has another name than in the directory");
    if (begin > file.size() || size > file.size() - begin) refuse("a part of it is missing");
    return begin;
}

}  // namespace

Zip read_zip(const File &file) {
    const std::string end = end_record(file);
    const std::string directory = file.read(number(end, 16, 4), number(end, 12, 4));
    Zip zip{{}, end.substr(END_SIZE)};
    std::set<std::string> names;
    std::size_t claimed = 0, at = 0;
    for (std::size_t left = number(end, 10, 2); left--;) {
        if (at + ENTRY_SIZE > directory.size() || number(directory, at, 4) != ENTRY) refuse("its directory is damaged");
        const std::size_t packed = number(directory, at + 20, 4), size = number(directory, at + 24, 4);
        const std::size_t name_size = number(directory, at + 28, 2), start = number(directory, at + 42, 4);
        if (name_size > directory.size() - at - ENTRY_SIZE) refuse("its directory is damaged");
        const std::string name = directory.substr(at + ENTRY_SIZE, name_size);
        if (number(directory, at + 8, 2) & ENCRYPTED) refuse("it has encrypted members, a .cgd file has none");
        if (number(directory, at + 10, 2)) refuse("it has compressed members, a .cgd file has none");
        if (size == LARGER || start == LARGER) refuse("it is a zip64 archive, which this library does not read");
        claimed += size;
        if (claimed > file.size() || packed != size) refuse("it claims more data than it holds");
        if (!names.insert(name).second) refuse("it has two members of one name");
        zip.members.push_back({name, content(file, start, name, size), size});
        at += ENTRY_SIZE + name_size + number(directory, at + 30, 2) + number(directory, at + 32, 2);
    }
    return zip;
}

}  // namespace cgd
