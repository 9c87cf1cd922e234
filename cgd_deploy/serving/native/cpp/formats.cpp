#include "formats.hpp"

#include "bytes.hpp"
#include "failure.hpp"

#include <algorithm>
#include <array>

namespace cgd {

namespace {

struct Format {
    const char *name;
    const char *suffixes;  // between spaces
};

// The formats that Pillow 13 reads, and those of the plugins that Python's library knows.
constexpr std::array<Format, 45> FORMATS = {{
    {"AVIF", " avif avifs "},
    {"BLP", " blp "},
    {"BMP", " bmp "},
    {"BUFR", " bufr "},
    {"CUR", " cur "},
    {"DCX", " dcx "},
    {"DDS", " dds "},
    {"DIB", " dib "},
    {"EPS", " eps ps "},
    {"FITS", " fit fits "},
    {"FLI", " flc fli "},
    {"FTEX", " ftc ftu "},
    {"GBR", " gbr "},
    {"GIF", " gif "},
    {"GRIB", " grib "},
    {"HDF5", " h5 hdf "},
    {"HEIF", " heic heif hif "},
    {"ICNS", " icns "},
    {"ICO", " ico "},
    {"IM", " im "},
    {"IMT", ""},
    {"IPTC", " iim "},
    {"JPEG", " jfif jpe jpeg jpg mpo "},
    {"JPEG2000", " j2c j2k jp2 jpc jpf jpx "},
    {"JXL", " jxl "},
    {"MCIDAS", ""},
    {"MPEG", " mpeg mpg "},
    {"MSP", " msp "},
    {"PCD", " pcd "},
    {"PCX", " pcx "},
    {"PIXAR", " pxr "},
    {"PNG", " apng png "},
    {"PPM", " pbm pfm pgm pnm ppm "},
    {"PSD", " psd "},
    {"QOI", " qoi "},
    {"SGI", " bw rgb rgba sgi "},
    {"SPIDER", ""},
    {"SUN", " ras "},
    {"TGA", " icb tga vda vst "},
    {"TIFF", " tif tiff "},
    {"WEBP", " webp "},
    {"WMF", " emf wmf "},
    {"XBM", " xbm "},
    {"XPM", " xpm "},
    {"XVTHUMB", ""},
}};

constexpr Bytes SPACES = " \t\n\r\v\f";

struct Start {
    std::string_view bytes;
    const char *format;
};

constexpr std::array<Start, 14> STARTS = {{
    {{"\xff\xd8\xff", 3}, "JPEG"},
    {{"\x89PNG\r\n\x1a\n", 8}, "PNG"},
    {{"GIF8", 4}, "GIF"},
    {{"BM", 2}, "BMP"},
    {{"II*\0", 4}, "TIFF"},
    {{"MM\0*", 4}, "TIFF"},
    {{"II+\0", 4}, "TIFF"},
    {{"MM\0+", 4}, "TIFF"},
    {{"\0\0\0\x0cjP  ", 8}, "JPEG2000"},
    {{"\xff\x4f\xff\x51", 4}, "JPEG2000"},
    {{"\0\0\0\x0cJXL ", 8}, "JXL"},
    {{"\xff\x0a", 2}, "JXL"},
    {{"\0\0\1\0", 4}, "ICO"},
    {{"8BPS", 4}, "PSD"},
}};

// The letters of ASCII in lower case, in any locale.
std::string lower(std::string text) {
    for (char &c : text)
        if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
    return text;
}

// The format of a file whose name begins at byte 4, as in films: AVIF and HEIF.
std::string format_of_box(Bytes file) {
    const Bytes brands = file.substr(8, 56);
    return brands.find("avif") != Bytes::npos || brands.find("avis") != Bytes::npos ? "AVIF" : "HEIF";
}

}  // namespace

std::string format_name(const std::string &name) {
    const std::size_t start = std::min(name.find_first_not_of('.'), name.size());
    const std::string plain = lower(name.substr(start)), suffix = " " + plain + " ";
    for (const Format &format : FORMATS)
        if (plain == lower(format.name)) return format.name;
    for (const Format &format : FORMATS)
        if (std::string_view(format.suffixes).find(suffix) != std::string_view::npos) return format.name;
    throw Failure(CGD_INVALID_ARGUMENT, "limit formats=" + name +
                                            " is unknown; pass names or suffixes of formats, such as JPEG,PNG.");
}

std::string format_of(Bytes file) {
    for (const Start &start : STARTS)
        if (starts_with(file, start.bytes)) return start.format;
    if (file.size() < 12) return "";
    if (starts_with(file, "RIFF") && file.substr(8, 4) == "WEBP") return "WEBP";
    if (file.substr(4, 4) == "ftyp") return format_of_box(file);
    const bool pnm = file[0] == 'P' && file[1] >= '1' && file[1] <= '7';
    return pnm && SPACES.find(file[2]) != Bytes::npos ? "PPM" : "";
}

}  // namespace cgd
