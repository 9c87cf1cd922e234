// Names of picture formats, and their first bytes. Decodes nothing.
#ifndef CGD_FORMATS_HPP
#define CGD_FORMATS_HPP

#include <string>
#include <string_view>

namespace cgd {

// Pillow's name of a format, from its name or a suffix: "jpg" gives "JPEG".
// Throws Failure(CGD_INVALID_ARGUMENT) for a format that neither Pillow nor a plugin of Python's library reads.
std::string format_name(const std::string &name);

// The format of a file by its first bytes, "" for a format that is not a common one.
std::string format_of(std::string_view file);

}  // namespace cgd

#endif
