// The largest sizes that this process accepts, by the names of `cgd-deploy --limit`. All threads share them.
#ifndef CGD_LIMITS_HPP
#define CGD_LIMITS_HPP

#include <cgd.h>

#include <cstdint>
#include <string>
#include <vector>

namespace cgd {

struct Limits {
    std::uint64_t pixels = 100'000'000;         // of a picture
    std::uint64_t picture_bytes = 1ULL << 30;   // of a picture's file
    std::vector<std::string> formats = {"AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP"};
    std::uint64_t list_bytes = 256ULL << 20;    // of a list of pictures
    bool listed_anywhere = true;                // whether a list may name pictures outside its own folder
    std::uint64_t engine_bytes = 8ULL << 30;    // of a .cgd file
    std::uint64_t manifest_bytes = 4ULL << 20;  // of its manifest
    std::uint64_t onnx_bytes = (2ULL << 30) - 1;
};

// The limits now.
Limits limits();

// Change one limit. Throws Failure(CGD_INVALID_ARGUMENT) for an unknown name, value or format.
void set_limit(const std::string &name, const std::string &value);

// Throw Failure(status) if `what` has more pixels or bytes than the limit of this name.
void check_size(const std::string &what, std::uint64_t size, const char *limit, cgd_status status);

}  // namespace cgd

#endif
