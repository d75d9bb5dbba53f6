#include "safetensors/other_format.h"

#include <algorithm>
#include <cctype>
#include <string_view>

#include "base/status.h"
#include "safetensors/header.h"

namespace fst {

namespace {

// A literal with its NULs.
template <size_t size>
constexpr std::string_view Bytes(const char (&text)[size]) {
  return {text, size - 1};
}

bool StartsWith(std::string_view text, std::string_view prefix) { return text.substr(0, prefix.size()) == prefix; }

bool StartsWithAnyCase(std::string_view text, std::string_view lower) {
  return text.size() >= lower.size() && std::equal(lower.begin(), lower.end(), text.begin(), [](char want, char found) {
           return want == std::tolower(static_cast<unsigned char>(found));
         });
}

bool IsText(char c) { return (c >= 0x20 && c < 0x7F) || c == '\n' || c == '\r' || c == '\t'; }

// The text without a byte order mark and white space at its beginning.
std::string_view Trimmed(std::string_view text) {
  if (StartsWith(text, "\xEF\xBB\xBF")) text.remove_prefix(3);
  const size_t first = text.find_first_not_of(" \t\r\n");
  return first == std::string_view::npos ? std::string_view() : text.substr(first);
}

struct Magic {
  size_t at;
  std::string_view bytes;
  const char* name;
  const char* description;
};

// Fewer are a header of length 0 rather than room for a file.
constexpr size_t kLeastZeros = 32;

constexpr const char* kUnpack = "an archive or compressed file; unpack it";

constexpr Magic kMagics[] = {
    {0, Bytes("GGUF"), "gguf", "a GGUF model of llama.cpp; get the model's .safetensors files"},
    {0, Bytes("\x1F\x8B\x08"), "gzip", kUnpack},
    {0, Bytes("\x28\xB5\x2F\xFD"), "zstd", kUnpack},
    {0,
     Bytes("\xFD"
           "7zXZ\0"),
     "xz", kUnpack},
    {0, Bytes("BZh"), "bzip2", kUnpack},
    {0, Bytes("7z\xBC\xAF\x27\x1C"), "7z", kUnpack},
    {257, Bytes("ustar"), "tar", kUnpack},
    {0, Bytes("\x93NUMPY"), "npy", "a NumPy array (.npy); write it with safetensors.numpy.save_file"},
    {0, Bytes("\x89HDF\r\n\x1A\n"), "hdf5",
     "an HDF5 file, perhaps a Keras model (.h5); load it there and write it with safetensors"},
    {4, Bytes("TFL3"), "tflite", "a TensorFlow Lite model; its weights cannot be loaded from it"},
    {4, Bytes("ORTM"), "ort", "a model of ONNX Runtime's own format (.ort); get it as .onnx"},
};

OtherFormat OfText(std::string_view text) {
  if (StartsWith(text, "version https://git-lfs.github.com/") || StartsWith(text, "version https://hawser.github.com/"))
    return {"git-lfs", "a Git LFS pointer instead of the file itself; run `git lfs pull` in its clone"};
  const std::string page = "perhaps what a server answered instead of the file; download it again";
  const char second = text.size() > 1 ? text[1] : '\0';
  if (StartsWithAnyCase(text, "<?xml") || StartsWith(text, "<Error>")) return {"xml", "an XML page, " + page};
  if (text[0] == '<' && (std::isalpha(static_cast<unsigned char>(second)) || second == '!'))
    return {"html", "an HTML page, " + page};
  const std::string_view inside = Trimmed(text.substr(1));
  if (text[0] == '{' && !inside.empty() && (inside[0] == '"' || inside[0] == '}'))
    return {"json", "JSON, " + page + "; it begins with " +
                        BeginningOfText(reinterpret_cast<const uint8_t*>(text.data()), text.size())};
  return {};
}

OtherFormat OfZip(std::string_view bytes) {
  // The first entry's name follows its header of 30 bytes; PyTorch's data.pkl comes first or second.
  const std::string_view name = bytes.substr(std::min<size_t>(bytes.size(), 30), 256);
  const size_t length = bytes.size() < 28 ? 0 : static_cast<unsigned char>(bytes[26]);
  const std::string_view first = name.substr(0, length);
  if (first.size() > 4 && first.substr(first.size() - 4) == ".npy")
    return {"npz", "NumPy arrays (.npz); write them with safetensors.numpy.save_file"};
  if (bytes.find("data.pkl") != std::string_view::npos)
    return {"pytorch",
            "a PyTorch checkpoint (.pt, .bin); load it with PyTorch and write it with safetensors.torch.save_file"};
  return {"zip", "a zip archive; unpack it, or write the weights in it as .safetensors where they come from"};
}

// The protocol, 2 to 5, and an opcode.
bool LooksLikePickle(std::string_view bytes) {
  return bytes.size() > 2 && bytes[0] == '\x80' && bytes[1] >= 2 && bytes[1] <= 5 && bytes[2] != '\0';
}

// ir_version, then any other field of a ModelProto that is a text or a message.
bool LooksLikeOnnx(std::string_view bytes) {
  if (bytes.size() < 4 || bytes[0] != 0x08 || bytes[1] < 1 || bytes[1] > 64) return false;
  constexpr std::string_view kFields = "\x12\x1A\x22\x32\x3A\x42";
  return kFields.find(bytes[2]) != std::string_view::npos;
}

}  // namespace

OtherFormat RecognizeFormat(const uint8_t* bytes, size_t length, uint64_t file_size) {
  const std::string_view content(reinterpret_cast<const char*>(bytes), length);
  if (file_size == 0) return {"empty", "empty; its download or copy failed, get it again"};
  if (length == 0) return {};
  // Before others: a header's length may be any bytes. Its upper half is 0 below 4 GiB.
  if (length > 8 && content[8] == '{' && content.substr(4, 4) == Bytes("\0\0\0\0")) {
    return {"safetensors", "a .safetensors file, which has weights and no graph"};
  }
  if (StartsWith(content, "PK\x03\x04")) return OfZip(content);
  for (const Magic& magic : kMagics) {
    if (content.size() > magic.at && StartsWith(content.substr(magic.at), magic.bytes))
      return {magic.name, magic.description};
  }
  if (LooksLikePickle(content)) {
    return {"pickle",
            "a Python pickle, perhaps a PyTorch checkpoint (.pt, .bin); load it with PyTorch and write it with "
            "safetensors.torch.save_file"};
  }
  if (LooksLikeOnnx(content)) {
    return {"onnx",
            "an ONNX model; `npx fastsafetensors-node split-onnx` writes its weights as .safetensors, and "
            "createSession takes it as it is"};
  }
  if (length >= kLeastZeros && content.find_first_not_of('\0') == std::string_view::npos) {
    return {"zeros", Format("nothing but zeros in its first %zu bytes: room that no download or copy has filled; get "
                            "it again",
                            length)};
  }
  const std::string_view text = Trimmed(content);
  const size_t seen = std::min<size_t>(text.size(), 16);
  if (seen == 0 || !std::all_of(text.begin(), text.begin() + seen, IsText)) return {};
  return OfText(text);
}

std::string BeginningOfText(const uint8_t* bytes, size_t length) {
  constexpr size_t kLeast = 8;
  const std::string_view all(reinterpret_cast<const char*>(bytes), length);
  const std::string_view text = Trimmed(all);
  const size_t end = std::find_if_not(text.begin(), text.end(), IsText) - text.begin();
  if (end < std::min(kLeast, text.size()) || end == 0) return "";
  return QuoteName(text.substr(0, end));
}

}  // namespace fst
