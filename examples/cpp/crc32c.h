// CRC-32C (Castagnoli), the checksum of a transfer for programs without XXH3.
#pragma once

#include <array>
#include <cstdint>
#include <string>

inline std::uint32_t Crc32c(const std::string& bytes) {
  static const auto table = [] {
    std::array<std::uint32_t, 256> values{};
    for (std::uint32_t byte = 0; byte < values.size(); ++byte) {
      std::uint32_t value = byte;
      for (int bit = 0; bit < 8; ++bit) value = value & 1 ? value >> 1 ^ 0x82f63b78u : value >> 1;
      values[byte] = value;
    }
    return values;
  }();
  std::uint32_t value = 0xffffffffu;
  for (unsigned char byte : bytes) value = table[(value ^ byte) & 0xff] ^ value >> 8;
  return ~value;
}
