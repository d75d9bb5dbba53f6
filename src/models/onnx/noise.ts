/** Numbers in [-1, 1) from a fixed seed (mulberry32), the same in every run. */
export function noise(length: number, seed = 1): Float32Array<ArrayBuffer> {
  const data = new Float32Array(length);
  let state = seed;
  for (let i = 0; i < length; ++i) {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), state | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    data[i] = ((t ^ (t >>> 14)) >>> 0) / 2 ** 31 - 1;
  }
  return data;
}
