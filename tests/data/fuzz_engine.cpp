// libFuzzer target for the readers of engine files, tunings and indices. The first byte says what the others are: a
// whole file, or a part of one whose checksums are made to fit, so that the fuzzer gets behind them.
#include "../../cgd_deploy/serving/native/cpp/enginefile.hpp"
#include "../../cgd_deploy/serving/native/cpp/failure.hpp"
#include "../../cgd_deploy/serving/native/cpp/index.hpp"
#include "../../cgd_deploy/serving/native/cpp/sha256.hpp"

#include <cstdlib>
#include <fstream>
#include <unistd.h>
#include <utility>
#include <vector>

namespace {

using Members = std::vector<std::pair<std::string, std::string>>;

std::string folder() {
    static char name[] = "/tmp/fuzz_engine.XXXXXX";
    static const std::string made = ::mkdtemp(name);
    return made;
}

void write(const std::string &name, const std::string &bytes) {
    std::ofstream(folder() + "/" + name, std::ios::binary) << bytes;
}

std::string number(std::size_t value, int bytes) {
    std::string text;
    for (int i = 0; i < bytes; i++) text += char(i < 8 ? value >> 8 * i : 0);
    return text;
}

std::string sum(const std::string &bytes) {
    return cgd::sha256(bytes.data(), bytes.size());
}

// A zip of stored members; the readers look at no CRC.
std::string zipped(const Members &members, const std::string &comment) {
    std::string file, directory;
    for (const auto &[name, content] : members) {
        const std::string sizes = number(0, 4) + number(content.size(), 4) + number(content.size(), 4);
        directory += "PK\x01\x02" + number(0, 2) + number(20, 2) + number(0, 2) + number(0, 2) + number(0, 4) + sizes +
                     number(name.size(), 2) + number(0, 12) + number(file.size(), 4) + name;
        file += "PK\x03\x04" + number(20, 2) + number(0, 2) + number(0, 2) + number(0, 4) + sizes +
                number(name.size(), 2) + number(0, 2) + name + content;
    }
    return file + directory + "PK\x05\x06" + number(0, 4) + number(members.size(), 2) + number(members.size(), 2) +
           number(directory.size(), 4) + number(file.size(), 4) + number(comment.size(), 2) + comment;
}

std::string array(const std::string &type, const std::string &shape, std::size_t bytes) {
    const std::string header = "{'descr': '" + type + "', 'fortran_order': False, 'shape': " + shape + ", }";
    return "\x93NUMPY\x01" + std::string(1, '\0') + number(header.size(), 2) + header + std::string(bytes, '\0');
}

std::string manifest(const Members &members) {
    std::string sums;
    for (const auto &[name, content] : members)
        sums += (sums.empty() ? "\"" : ", \"") + name + "\": \"" + sum(content) + "\"";
    return R"({"schema": 1, "spec": {"backbone": "resnet18", "descriptors": "SG", "dim": 2, "no_downsample": "none",
        "gem_p": 3.0, "gem_eps": 1e-6, "input_size": [32, 32], "resize": "pillow-bilinear", "mean": [0, 0, 0],
        "std": [1, 1, 1], "color": "RGB", "space_id": "s"}, "backend": "openvino", "precision": "fp32",
        "payload": "model.onnx", "profile": {"min": 1, "opt": 1, "max": 1}, "builder": {}, "sha256": {)" +
           sums + "}}";
}

Members parts() {
    return {{"model.onnx", "payload"},
            {"golden/images.npy", array("|u1", "(1, 32, 32, 3)", 3072)},
            {"golden/descriptors.npy", array("<f4", "(1, 2)", 8)}};
}

void write_engine(const Members &members, const std::string &text) {
    Members all{{"manifest.json", text}};
    all.insert(all.end(), members.begin(), members.end());
    write("e.cgd", zipped(all, sum(text)));
}

void write_index(const std::string &rows, const std::string &facts) {
    write("i.npy", rows);
    write("i.npy.json", facts.empty() ? R"({"space_id": "s", "precision": "fp32", "descriptor_dtype": "int8", "dim": 2,
        "paths": ["a", "b"], "paths_are": "relative", "sha256": ")" +
                                            sum(rows) + "\"}"
                                      : facts);
}

// An array before the first line end of JSON facts, with the checksum in them.
void write_index_of(const std::string &facts) {
    const std::string rows = array("|i1", "(2, 2)", 4);
    write_index(rows,
                facts.empty() ? facts : facts.substr(0, facts.size() - 1) + ", \"sha256\": \"" + sum(rows) + "\"}");
}

void read_index() {
    const cgd::Index index(folder() + "/i.npy");
    const std::vector<float> query(index.dim(), 1);
    std::vector<std::uint64_t> found(index.size());
    std::vector<float> scores(index.size());
    if (index.size()) index.search(index.space_id(), query.data(), 1, index.size(), found.data(), scores.data());
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t *data, std::size_t size) {
    if (!size) return 0;
    const std::string bytes(reinterpret_cast<const char *>(data) + 1, size - 1);
    Members members = parts();
    try {
        switch (data[0] % 8) {
            case 0:
                write("e.cgd", bytes);
                break;
            case 1:
                write_engine(members, bytes);
                break;
            case 2:
                members[1].second = bytes, write_engine(members, manifest(members));
                break;
            case 3:
                members[2].second = bytes, write_engine(members, manifest(members));
                break;
            case 4:
                write_engine(members, manifest(members)), write("e.cgd.tuning.json", bytes);
                break;
            case 5:
                return write_index(bytes, ""), read_index(), 0;
            case 6:
                return write_index_of(bytes), read_index(), 0;
            default:
                return write_index(array("|i1", "(2, 2)", 4), bytes), read_index(), 0;
        }
        cgd::read_engine(folder() + "/e.cgd");
    } catch (const cgd::Failure &) {
    }
    return 0;
}
