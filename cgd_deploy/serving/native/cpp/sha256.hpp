// SHA-256 (FIPS 180-4), with the instructions of x86 CPUs where they are there.
#ifndef CGD_SHA256_HPP
#define CGD_SHA256_HPP

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

namespace cgd {

class Sha256 {
  public:
    void add(const void *data, std::size_t size);
    std::string hex();  // 64 digits; ends the sum

  private:
    std::array<std::uint32_t, 8> state_{0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                        0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
    std::array<std::uint8_t, 64> rest_{};
    std::uint64_t length_ = 0;
};

std::string sha256(const void *data, std::size_t size);

}  // namespace cgd

#endif
