// How an index names its pictures. paths.py explains the rules.
#ifndef CGD_PATHS_HPP
#define CGD_PATHS_HPP

#include <string>
#include <vector>

namespace cgd {

// Python writes bytes that are no UTF-8 as lone surrogates, which JSON does not have. Gives a JSON text with other
// letters for these bytes, which `file_name` turns into bytes again.
std::string with_marked_bytes(const std::string &json);
std::string file_name(const std::string &text);

// The paths of `names`, which start from `folder`, as they can be opened from the current folder: relative inside of
// it, absolute outside.
std::vector<std::string> paths_from_here(const std::vector<std::string> &names, const std::string &folder);

}  // namespace cgd

#endif
