/** Digests as texts and packed, as csrc/base/digest.h has them. */

/** By their names, as texts begin: numbers of DigestKind. */
export const DIGEST_KINDS = { 'xxh3-128': 1, sha256: 2 } as const;
export type DigestName = keyof typeof DIGEST_KINDS;

/** Bytes that a packed digest takes. */
export const DIGEST_BYTES = 32;

/** Digests of several things: the number of each kind, 0 for none, and DIGEST_BYTES of each. */
export interface PackedDigests {
  readonly kinds: Uint8Array;
  readonly digests: Uint8Array;
}

/** The text of a packed digest, `xxh3-128:` or `sha256:` and digits. */
export function digestText({ kinds, digests }: PackedDigests, index: number): string {
  const kind = kinds[index]!;
  const [name] = Object.entries(DIGEST_KINDS).find(([, number]) => number === kind) ?? ['none'];
  const bytes = digests.subarray(index * DIGEST_BYTES, index * DIGEST_BYTES + digestBytes(kind));
  return `${name}:${Buffer.from(bytes).toString('hex')}`;
}

/** Those of some of the things, in the order of `indices`. */
export function digestsOf({ kinds, digests }: PackedDigests, indices: ArrayLike<number>): PackedDigests {
  const found = { kinds: new Uint8Array(indices.length), digests: new Uint8Array(indices.length * DIGEST_BYTES) };
  for (let i = 0; i < indices.length; ++i) {
    const index = indices[i]!;
    found.kinds[i] = kinds[index]!;
    found.digests.set(digests.subarray(index * DIGEST_BYTES, (index + 1) * DIGEST_BYTES), i * DIGEST_BYTES);
  }
  return found;
}

function digestBytes(kind: number): number {
  return kind === DIGEST_KINDS['xxh3-128'] ? 16 : DIGEST_BYTES;
}

/** Of no bytes, by kind. */
export const EMPTY_DIGESTS: Readonly<Record<number, string>> = {
  1: 'xxh3-128:99aa06d3014798d86001c324468d497f',
  2: 'sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855',
};
