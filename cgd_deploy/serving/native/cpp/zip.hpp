// Zip archives of stored members. Nothing is unpacked.
#ifndef CGD_ZIP_HPP
#define CGD_ZIP_HPP

#include "file.hpp"

#include <string>
#include <vector>

namespace cgd {

struct Member {
    std::string name;
    std::size_t start, size;  // of its content in the file
};

struct Zip {
    std::vector<Member> members;  // in the order of the directory
    std::string comment;
};

// Throws std::invalid_argument, with the reason, for an archive that is damaged, or has members that are compressed,
// encrypted, larger than the file, or of one name.
Zip read_zip(const File &file);

}  // namespace cgd

#endif
