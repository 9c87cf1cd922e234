// Regular files: read in parts or mapped into memory, with the checksum that tells the files of two runs apart.
#ifndef CGD_FILE_HPP
#define CGD_FILE_HPP

#include <cgd.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>

namespace cgd {

class File {
  public:
    // `limit` is the name of a limit on its size, or nullptr. Throws Failure(status) for a file that is missing, not
    // regular or larger. Other functions throw std::runtime_error if the file cannot be read.
    File(const std::string &path, const char *limit, cgd_status status);
    ~File();
    File(const File &) = delete;
    File &operator=(const File &) = delete;

    std::size_t size() const {
        return size_;
    }
    // Throws std::invalid_argument for bytes behind the end.
    std::string read(std::size_t start, std::size_t size) const;
    std::string read() const {
        return read(0, size_);
    }

    // The bytes and their SHA-256, which another thread computes while this one reads on.
    std::pair<std::string, std::string> read_and_sum(std::size_t start, std::size_t size) const;

    std::string sha256() const;
    // The sum of files.sampled_sha256: of the size and of 256 blocks that are spread over the file.
    std::string sampled_sha256() const;

  private:
    void read_into(char *bytes, std::size_t start, std::size_t size) const;

    friend class Mapping;
    int number_ = -1;
    std::size_t size_ = 0;
};

// All bytes of a file, which are read when they are used.
class Mapping {
  public:
    explicit Mapping(const File &file);
    ~Mapping();
    Mapping(const Mapping &) = delete;
    Mapping &operator=(const Mapping &) = delete;

    std::string_view bytes() const {
        return {static_cast<const char *>(data_), size_};
    }

  private:
    void *data_ = nullptr;
    std::size_t size_ = 0;
};

bool is_file(const std::string &path);

}  // namespace cgd

#endif
