// The pictures of the C++ library behind C functions, for test_native_pictures.py.
#include "decode.hpp"
#include "failure.hpp"
#include "limits.hpp"
#include "resize.hpp"

#include <cstdlib>
#include <cstring>
#include <string>

namespace {

std::string sentence;  // of the last failure

template <typename Work>
int status_of(Work work) {
    try {
        sentence.clear();
        work();
        return CGD_OK;
    } catch (const cgd::Failure &failure) {
        sentence = failure.what();
        return failure.status;
    } catch (const std::exception &error) {
        sentence = error.what();
        return CGD_INTERNAL;
    }
}

}  // namespace

extern "C" {

CGD_API const char *pictures_error() { return sentence.c_str(); }

// The caller frees the pixels with pictures_free.
CGD_API int pictures_decode(const uint8_t *bytes, size_t size, uint32_t *width, uint32_t *height, uint8_t **pixels) {
    return status_of([&] {
        const cgd::Picture picture = cgd::decode(bytes, size);
        *width = picture.width;
        *height = picture.height;
        *pixels = static_cast<uint8_t *>(std::malloc(picture.rgb.size()));
        if (*pixels != nullptr) std::memcpy(*pixels, picture.rgb.data(), picture.rgb.size());
    });
}

CGD_API void pictures_free(uint8_t *pixels) { std::free(pixels); }

CGD_API int pictures_fit(const cgd_image *image, const char *resize, uint32_t height, uint32_t width, uint8_t *out) {
    return status_of([&] {
        const cgd::View view{image->data, image->width, image->height, image->stride, image->format == CGD_BGR8};
        cgd::fit(view, cgd::ResizeRule::parse(resize), height, width, out);
    });
}

// Decode, resize and crop an encoded file.
CGD_API int pictures_fit_file(const uint8_t *bytes, size_t size, const char *resize, uint32_t height, uint32_t width,
                              uint8_t *out) {
    return status_of([&] {
        const cgd::Picture picture = cgd::decode(bytes, size);
        cgd::fit_always(picture.view(), cgd::ResizeRule::parse(resize), height, width, out);
    });
}

CGD_API int pictures_set_limit(const char *name, const char *value) {
    return status_of([&] { cgd::set_limit(name, value); });
}

}  // extern "C"
