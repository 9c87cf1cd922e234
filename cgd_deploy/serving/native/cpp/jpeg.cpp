#include "codecs.hpp"
#include "resize.hpp"

#include <algorithm>
#include <csetjmp>
#include <cstddef>
#include <cstdio>
#include <utility>

#include <jpeglib.h>

namespace cgd {

namespace {

constexpr std::size_t BLOCK = 1 << 16;  // bytes that Pillow hands over at a time: what follows the pixels matters less

// What libjpeg's callbacks find through the pointers that they are given. The pixels go to `out`.
struct Decoder {
    jpeg_decompress_struct info{};
    jpeg_error_mgr errors{};
    jpeg_source_mgr source{};
    std::jmp_buf on_error{};
    Bytes rest;            // bytes that libjpeg does not have yet
    std::size_t skip = 0;  // bytes at the start of rest that it does not want
    std::uint8_t *out = nullptr;
    JDIMENSION width = 0, height = 0;
    J_COLOR_SPACE colours = JCS_RGB;

    Decoder() = default;
    Decoder(const Decoder &) = delete;
    Decoder &operator=(const Decoder &) = delete;
    ~Decoder() { jpeg_destroy_decompress(&info); }
};

Decoder &decoder_of(void *client) { return *static_cast<Decoder *>(client); }

extern "C" {

static void fail(j_common_ptr info) { std::longjmp(decoder_of(info->client_data).on_error, 1); }

static void say_nothing(j_common_ptr) {}

static void do_nothing(j_decompress_ptr) {}

static boolean wait_for_more(j_decompress_ptr) { return FALSE; }

static void skip_input(j_decompress_ptr info, long count) {
    if (count <= 0) return;
    Decoder &decoder = decoder_of(info->client_data);
    const std::size_t here = std::min(static_cast<std::size_t>(count), decoder.source.bytes_in_buffer);
    decoder.source.next_input_byte += here;
    decoder.source.bytes_in_buffer -= here;
    decoder.skip = static_cast<std::size_t>(count) - here;
}

}  // extern "C"

// Give libjpeg one block more. False at the end of the file.
bool more(Decoder &decoder) {
    do {
        const std::size_t count = std::min(BLOCK, decoder.rest.size());
        if (count == 0) return false;
        decoder.source.bytes_in_buffer += count;
        decoder.rest.remove_prefix(count);
        const std::size_t skipped = std::min(decoder.skip, decoder.source.bytes_in_buffer);
        decoder.source.next_input_byte += skipped;
        decoder.source.bytes_in_buffer -= skipped;
        decoder.skip -= skipped;
    } while (decoder.skip > 0);
    return true;
}

void prepare(Decoder &decoder) {
    decoder.info.err = jpeg_std_error(&decoder.errors);
    decoder.errors.error_exit = fail;
    decoder.errors.output_message = say_nothing;
    decoder.info.client_data = &decoder;
    jpeg_create_decompress(&decoder.info);
    decoder.source.init_source = do_nothing;
    decoder.source.fill_input_buffer = wait_for_more;
    decoder.source.skip_input_data = skip_input;
    decoder.source.resync_to_restart = jpeg_resync_to_restart;
    decoder.source.term_source = do_nothing;
    decoder.source.next_input_byte = reinterpret_cast<const JOCTET *>(decoder.rest.data());
    decoder.info.src = &decoder.source;
}

// Whether all rows were decoded. An error of libjpeg jumps back here: no frame between holds an object to destroy.
bool run(Decoder &decoder) noexcept {
    if (setjmp(decoder.on_error) != 0) return false;
    prepare(decoder);
    jpeg_decompress_struct &info = decoder.info;
    for (int found = JPEG_SUSPENDED; found != JPEG_HEADER_OK;) {
        if (found == JPEG_SUSPENDED && !more(decoder)) return false;
        found = jpeg_read_header(&info, FALSE);
    }
    info.out_color_space = decoder.colours;
    while (jpeg_start_decompress(&info) == FALSE)
        if (!more(decoder)) return false;
    if (info.output_width != decoder.width || info.output_height != decoder.height) return false;
    const std::size_t row = static_cast<std::size_t>(info.output_components) * info.output_width;
    while (info.output_scanline < info.output_height) {
        JSAMPROW target = decoder.out + info.output_scanline * row;
        if (jpeg_read_scanlines(&info, &target, 1) != 1 && !more(decoder)) return false;
    }
    jpeg_finish_decompress(&info);  // damage behind the last row does not matter
    return true;
}

// CMYK to RGB in place. The file holds 255 - c, 255 - m, 255 - y and 255 - k, as Adobe's programs write it.
void to_rgb(std::vector<std::uint8_t> &pixels) {
    std::uint8_t *out = pixels.data();
    for (std::size_t i = 0; i < pixels.size(); i += 4) {
        const int light = pixels[i + 3];
        for (std::size_t channel = 0; channel < 3; ++channel) {
            const int product = (255 - pixels[i + channel]) * light + 128;
            *out++ = static_cast<std::uint8_t>(std::max(light - ((product + (product >> 8)) >> 8), 0));
        }
    }
    pixels.resize(pixels.size() / 4 * 3);
}

}  // namespace

Picture decode_jpeg(Bytes file) {
    const JpegHeader header = read_jpeg_header(file);
    check_sides({header.height, header.width});
    const bool cmyk = header.layers == 4;
    Picture picture{header.width, header.height, {}};
    picture.rgb.resize((cmyk ? 4 : 3) * static_cast<std::size_t>(header.width) * header.height);
    Decoder decoder;
    decoder.rest = file;
    decoder.out = picture.rgb.data();
    decoder.width = header.width;
    decoder.height = header.height;
    decoder.colours = cmyk ? JCS_CMYK : JCS_RGB;
    if (!run(decoder)) {
        const bool ended = decoder.rest.empty() && decoder.source.bytes_in_buffer == 0;
        throw Damaged(ended ? "the file is truncated" : "its pixels are damaged");
    }
    if (cmyk) to_rgb(picture.rgb);
    return turned(std::move(picture), orientation(header.metadata));
}

}  // namespace cgd
