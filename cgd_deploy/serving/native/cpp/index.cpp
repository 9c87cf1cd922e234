#include "index.hpp"

#include "failure.hpp"
#include "manifest.hpp"
#include "paths.hpp"
#include "search.hpp"

#include <nlohmann/json.hpp>

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <stdexcept>

namespace cgd {
namespace {

using Json = nlohmann::json;

constexpr std::size_t CHECKSUM_DIGITS = 32, LONGEST = 1 << 16;

[[noreturn]] void refuse(const std::string &sentence) {
    throw Failure(CGD_BAD_INDEX, sentence);
}

// The names of the files that are there: a file beside an index, and the file that a killed writer left.
std::vector<std::string> names_of(const std::string &file) {
    std::vector<std::string> names;
    for (const std::string &name : {file, file + ".new"})
        if (is_file(name)) names.push_back(name);
    return names;
}

float from_half(std::uint16_t half) {
    std::uint32_t bits = std::uint32_t(half & 0x7fff) << 13;
    if ((half & 0x7c00) == 0x7c00) bits |= 0x7f800000;  // infinite
    float value = 0;
    std::memcpy(&value, &bits, sizeof value);
    return (half & 0x8000 ? -value : value) * 0x1p112F;
}

// Scale a row to unit length; a row of zeros stays zeros.
void make_unit(float *row, std::size_t length) {
    const float norm = std::max(std::sqrt(dot(row, row, length)), FLT_MIN);
    for (std::size_t i = 0; i < length; i++) row[i] /= norm;
}

struct Form {
    const char *dtype, *stored;
    std::size_t bits;
};

constexpr Form FORMS[] = {{"float32", "<f4", 32}, {"float16", "<f2", 16}, {"int8", "|i1", 8}, {"binary", "|u1", 1}};

void check_form(const Array &stored, const std::string &dtype, std::size_t length) {
    const auto *const form =
        std::find_if(std::begin(FORMS), std::end(FORMS), [&](const Form &one) { return one.dtype == dtype; });
    if (form == std::end(FORMS)) throw std::invalid_argument("descriptor dtype " + dtype.substr(0, 60) + " is unknown");
    const std::size_t width = (length * form->bits + 7) / 8 / stored.item_size();
    if (stored.type != form->stored || stored.shape != std::vector<std::size_t>{stored.rows(), width})
        throw std::invalid_argument("its descriptors have another type or size");
}

std::vector<float> read_projection(const std::string &path, const Json &facts, std::size_t length, std::size_t dim) {
    for (const std::string &name : names_of(path + ".pca.npy")) {
        const File file(name, nullptr, CGD_BAD_INDEX);
        const auto [bytes, sum] = file.read_and_sum(0, file.size());
        if (sum != facts.at("pca_sha256")) continue;
        const Array array = read_npy(bytes);
        if (array.type != "<f4" || array.shape != std::vector<std::size_t>{length + 1, dim})
            throw std::invalid_argument("its PCA has another type or size");
        std::vector<float> values(array.values());
        std::memcpy(values.data(), array.data, values.size() * sizeof(float));
        return values;
    }
    refuse(path + ".pca.npy, the PCA of " + path + ", is missing or belongs to a different run; make the index again.");
}

// Returns `path`. Throws Failure if this library reads no index of such a name.
const std::string &checked(const std::string &path) {
    const std::string suffix = std::filesystem::path(path).extension().string();
    if (suffix == ".parquet")
        refuse(path +
               " is Parquet, and this library reads .npy; use the library of `cgd-deploy install-native "
               "--embed-python`, or write the index as .npy.");
    if (suffix != ".npy") refuse(path + " ends in " + (suffix.empty() ? "nothing" : suffix) + "; expected .npy.");
    return path;
}

// The sidecar of the index file: the one whose checksum the file has.
Json sidecar_of(const std::string &path, const File &file) {
    auto names = names_of(path + ".json");
    if (names.empty()) names.push_back(path + ".json");  // opening it says why it is not there
    for (const std::string &name : names) {
        Json facts = parse_table(with_marked_bytes(File(name, nullptr, CGD_BAD_INDEX).read()));
        const bool sampled = facts.contains("sampled_sha256");
        if (facts.at(sampled ? "sampled_sha256" : "sha256") == (sampled ? file.sampled_sha256() : file.sha256()))
            return facts;
    }
    refuse(path + " and " + path + ".json belong to different runs; make the index again.");
}

std::vector<std::string> paths_of(const Json &facts, const std::string &path) {
    std::vector<std::string> names;
    for (const Json &name : facts.at("paths")) names.push_back(file_name(name.get_ref<const std::string &>()));
    const Json rule = facts.value("paths_are", Json());
    if (rule.is_null()) return names;  // of release 0.1.0
    if (rule != "relative" && rule != "absolute")
        throw std::invalid_argument("paths_are is " + rule.dump().substr(0, 60));
    return paths_from_here(names, std::filesystem::path(path).parent_path().string());
}

void check_texts(const Json &facts, std::size_t rows) {
    const Json statement = facts.value("statement", Json());
    if (!facts.at("precision").is_string() || !(statement.is_string() || statement.is_null()))
        throw std::invalid_argument("a name is not text");
    const auto contents = facts.find("contents");
    if (contents != facts.end() && contents->get_ref<const std::string &>().size() != CHECKSUM_DIGITS * rows)
        throw std::invalid_argument("it has another number of checksums than of descriptors");
}

}  // namespace

struct Index::Facts {
    explicit Facts(const std::string &path)
        : file(checked(path), nullptr, CGD_BAD_INDEX), json(sidecar_of(path, file)) {}
    File file;
    Json json;
};

Index::Index(const std::string &path, const Facts &facts)
    : space_id_(facts.json.at("space_id")),
      dtype_(facts.json.value("descriptor_dtype", "float32")),
      paths_(paths_of(facts.json, path)),
      mapping_(facts.file),
      stored_(read_npy(mapping_.bytes())) {
    const Json &json = facts.json;
    if (stored_.shape.size() != 2) throw std::invalid_argument("it is not a table");
    dim_ = json.contains("dim") ? json["dim"].get<std::size_t>() : stored_.shape[1];
    const Json pca = json.value("pca", Json());
    length_ = pca.is_null() ? dim_ : pca.get<std::size_t>();
    if (!dim_ || dim_ > LONGEST || !length_ || length_ > dim_)
        throw std::invalid_argument("its number of values cannot be");
    check_form(stored_, dtype_, length_);
    if (!pca.is_null()) projection_ = read_projection(path, json, length_, dim_);
    if (paths_.size() != size())
        throw std::invalid_argument(std::to_string(paths_.size()) + " paths for " + std::to_string(size()) +
                                    " descriptors");
    check_texts(json, size());
}

Index::Index(const std::string &path) try : Index(path, Facts(path)) {
} catch (const Failure &) {
    throw;
} catch (const std::exception &error) {
    refuse(path + " is not an index of cgd-deploy embed (" + reason_of(error) + "); make it again.");
}

std::vector<float> Index::projected(const float *queries, std::size_t count) const {
    if (projection_.empty()) return {queries, queries + count * dim_};
    std::vector<float> found(count * length_), centred(dim_);
    for (std::size_t query = 0; query < count; query++) {
        for (std::size_t i = 0; i < dim_; i++) centred[i] = queries[query * dim_ + i] - projection_[i];
        for (std::size_t j = 0; j < length_; j++)
            found[query * length_ + j] = dot(centred.data(), &projection_[(j + 1) * dim_], dim_);
        make_unit(&found[query * length_], length_);
    }
    return found;
}

void Index::restore(std::size_t start, std::size_t count, float *out) const {
    const std::size_t width = stored_.shape[1];
    const std::uint8_t *rows = stored_.data + start * width * stored_.item_size();
    if (dtype_ == "float32") {
        std::memcpy(out, rows, count * length_ * sizeof(float));
        return;
    }
    const float one = 1 / std::sqrt(float(length_));
    for (std::size_t row = 0; row < count; row++, out += length_, rows += width * stored_.item_size()) {
        if (dtype_ == "binary") {
            for (std::size_t i = 0; i < length_; i++) out[i] = rows[i / 8] >> (7 - i % 8) & 1 ? one : -one;
            continue;
        }
        if (dtype_ == "int8") {
            for (std::size_t i = 0; i < length_; i++) out[i] = float(std::int8_t(rows[i]));
        } else {
            for (std::size_t i = 0; i < length_; i++)
                out[i] = from_half(std::uint16_t(rows[2 * i] | rows[2 * i + 1] << 8));
        }
        make_unit(out, length_);
    }
}

void Index::search(const std::string &asking, const float *queries, std::size_t count, std::size_t k,
                   std::uint64_t *indices, float *scores) const {
    if (asking != space_id_)
        refuse("the index describes space " + space_id_ + ", the engine " + asking +
               "; make the index again with this model's engine.");
    for (std::size_t i = 0; i < count * dim_; i++)
        if (!std::isfinite(queries[i]))
            refuse("the descriptor of query " + std::to_string(i / dim_) +
                   " is not finite; test its engine with `cgd-deploy inspect --self-test`.");
    const std::vector<float> values = projected(queries, count);
    const Rows rows{size(), length_, [this](std::size_t start, std::size_t n, float *out) { restore(start, n, out); }};
    nearest(rows, values.data(), count, k, indices, scores);
}

}  // namespace cgd
