// The bytes of a file from elsewhere, read with checks.
#ifndef CGD_BYTES_HPP
#define CGD_BYTES_HPP

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string_view>

namespace cgd {

using Bytes = std::string_view;

// Why a file cannot be read, in a few words. `decode` makes a Failure of it.
struct Damaged : std::runtime_error {
    using std::runtime_error::runtime_error;
};

inline std::uint8_t byte_at(Bytes bytes, std::size_t place) {
    if (place >= bytes.size()) throw Damaged("a part of it is too short");
    return static_cast<std::uint8_t>(bytes[place]);
}

inline std::uint32_t big16(Bytes bytes, std::size_t place) {
    return static_cast<std::uint32_t>(byte_at(bytes, place)) << 8 | byte_at(bytes, place + 1);
}

inline std::uint32_t big32(Bytes bytes, std::size_t place) {
    return big16(bytes, place) << 16 | big16(bytes, place + 2);
}

inline bool starts_with(Bytes bytes, Bytes start) { return bytes.substr(0, start.size()) == start; }

// A place in a file, which moves on as it is read.
class Cursor {
  public:
    explicit Cursor(Bytes file) : file_(file) {}

    std::size_t left() const { return file_.size() - place_; }

    // The next bytes, as many as there are.
    Bytes up_to(std::size_t count) {
        const Bytes bytes = file_.substr(place_, count);
        place_ += bytes.size();
        return bytes;
    }

    // The next bytes. Throws Damaged if there are fewer.
    Bytes take(std::size_t count) {
        if (count > left()) throw Damaged("the file is truncated");
        return up_to(count);
    }

  private:
    Bytes file_;
    std::size_t place_ = 0;
};

}  // namespace cgd

#endif
