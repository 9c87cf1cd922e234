// The pictures of the C++ library behind C functions, and an encoder of JPEG files that Pillow cannot write, for
// test_native_pictures.py.
#include "decode.hpp"
#include "failure.hpp"
#include "limits.hpp"
#include "resize.hpp"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include <jpeglib.h>

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

struct pictures_encoding {
    int channels;     // 1: grey, 3: RGB, 4: CMYK
    int colours;      // a J_COLOR_SPACE of the file
    int sampling[8];  // horizontal and vertical factors of each component
    int quality, progressive, arithmetic, restart;
};

// Write a JPEG file. The caller frees it with pictures_free.
CGD_API size_t pictures_encode(const uint8_t *pixels, uint32_t width, uint32_t height, const pictures_encoding *how,
                               uint8_t **file) {
    jpeg_compress_struct info{};
    jpeg_error_mgr errors{};
    unsigned long size = 0;
    *file = nullptr;
    info.err = jpeg_std_error(&errors);
    jpeg_create_compress(&info);
    jpeg_mem_dest(&info, file, &size);
    info.image_width = width;
    info.image_height = height;
    info.input_components = how->channels;
    info.in_color_space = how->channels == 1 ? JCS_GRAYSCALE : how->channels == 3 ? JCS_RGB : JCS_CMYK;
    jpeg_set_defaults(&info);
    jpeg_set_colorspace(&info, static_cast<J_COLOR_SPACE>(how->colours));
    jpeg_set_quality(&info, how->quality, TRUE);
    for (int i = 0; i < info.num_components; ++i) {
        info.comp_info[i].h_samp_factor = how->sampling[2 * i];
        info.comp_info[i].v_samp_factor = how->sampling[2 * i + 1];
    }
    info.arith_code = how->arithmetic;
    const size_t bytes = size_t{width} * static_cast<size_t>(how->channels);
    info.restart_interval = static_cast<unsigned>(how->restart);
    if (how->progressive != 0) jpeg_simple_progression(&info);
    jpeg_start_compress(&info, TRUE);
    while (info.next_scanline < height) {
        auto *row = const_cast<uint8_t *>(pixels) + info.next_scanline * bytes;
        jpeg_write_scanlines(&info, &row, 1);
    }
    jpeg_finish_compress(&info);
    jpeg_destroy_compress(&info);
    return size;
}

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
