#include "file.hpp"

#include "failure.hpp"
#include "limits.hpp"
#include "sha256.hpp"

#include <algorithm>
#include <cerrno>
#include <fcntl.h>
#include <future>
#include <stdexcept>
#include <sys/mman.h>
#include <sys/stat.h>
#include <system_error>
#include <unistd.h>

namespace cgd {
namespace {

constexpr std::size_t BLOCKS = 256, BLOCK = 4096, PART = 4 << 20;

std::string reason() {
    return std::generic_category().message(errno);
}

}  // namespace

File::File(const std::string &path, const char *limit, cgd_status status)
    : number_(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)) {  // a pipe does not block
    struct stat facts{};
    if (number_ < 0) throw Failure(status, path + " cannot be opened (" + reason() + "); check the path.");
    try {
        if (::fstat(number_, &facts) != 0 || !S_ISREG(facts.st_mode))
            throw Failure(status, path + " is not a regular file; give the name of a file.");
        size_ = std::size_t(facts.st_size);
        if (limit) check_size(path, size_, limit, status);
    } catch (...) {
        ::close(number_);
        throw;
    }
}

File::~File() {
    ::close(number_);
}

void File::read_into(char *bytes, std::size_t start, std::size_t size) const {
    for (std::size_t done = 0; done < size;) {
        const ssize_t taken = ::pread(number_, bytes + done, size - done, off_t(start + done));
        if (taken < 0 && errno == EINTR) continue;
        if (taken <= 0) throw std::runtime_error(taken ? reason() : "it became shorter");
        done += std::size_t(taken);
    }
}

std::string File::read(std::size_t start, std::size_t size) const {
    if (start > size_ || size > size_ - start) throw std::invalid_argument("a part of it is missing");
    std::string bytes(size, '\0');
    read_into(bytes.data(), start, size);
    return bytes;
}

std::pair<std::string, std::string> File::read_and_sum(std::size_t start, std::size_t size) const {
    if (start > size_ || size > size_ - start) throw std::invalid_argument("a part of it is missing");
    std::string bytes;
    bytes.reserve(size);  // pages are touched part by part
    Sha256 sum;
    std::future<void> summing;
    for (std::size_t done = 0; done < size; done += PART) {
        const std::size_t part = std::min(PART, size - done);
        bytes.resize(done + part);
        read_into(bytes.data() + done, start + done, part);
        if (summing.valid()) summing.get();
        summing = std::async(std::launch::async, [&sum, data = bytes.data() + done, part] { sum.add(data, part); });
    }
    if (summing.valid()) summing.get();
    return {std::move(bytes), sum.hex()};
}

std::string File::sha256() const {
    Sha256 sum;
    for (std::size_t start = 0; start < size_; start += PART) {
        const std::string part = read(start, std::min(PART, size_ - start));
        sum.add(part.data(), part.size());
    }
    return sum.hex();
}

std::string File::sampled_sha256() const {
    Sha256 sum;
    const std::string size = std::to_string(size_);
    sum.add(size.data(), size.size());
    for (std::size_t number = 0; number < BLOCKS; number++) {
        const std::size_t start = (size_ - std::min(size_, BLOCK)) * number / (BLOCKS - 1);
        const std::string block = read(start, std::min(BLOCK, size_ - start));
        sum.add(block.data(), block.size());
    }
    return sum.hex();
}

Mapping::Mapping(const File &file) : size_(file.size_) {
    if (!size_) return;
    data_ = ::mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, file.number_, 0);
    if (data_ == MAP_FAILED) throw std::runtime_error(reason());
}

Mapping::~Mapping() {
    if (data_) ::munmap(data_, size_);
}

bool is_file(const std::string &path) {
    struct stat facts{};
    return ::stat(path.c_str(), &facts) == 0 && S_ISREG(facts.st_mode);
}

}  // namespace cgd
