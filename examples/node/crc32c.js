// CRC-32C (Castagnoli), the checksum of a transfer for languages without XXH3.

const table = Uint32Array.from({ length: 256 }, (_, byte) => {
  let value = byte;
  for (let bit = 0; bit < 8; bit++) value = value & 1 ? (value >>> 1) ^ 0x82f63b78 : value >>> 1;
  return value;
});

/** Return the CRC-32C of bytes as an unsigned number. */
export function crc32c(bytes) {
  let value = 0xffffffff;
  for (const byte of bytes) value = table[(value ^ byte) & 255] ^ (value >>> 8);
  return (value ^ 0xffffffff) >>> 0; // >>> 0: a bitwise result is signed in JavaScript
}
