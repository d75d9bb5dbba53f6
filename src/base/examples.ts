/** For tests. */
export const examples: object[] = [];

/**
 * Keeps an object of a class, so that V8 keeps what it has compiled for the class: that depends on the layout of its
 * objects, which V8 forgets when it collects the last of them. Each load after a full collection would be interpreted
 * again, and compiled by threads that take the processors from those that read (of 50,000 tensors a third of the time).
 * Objects have another layout where their fields are set in another order, or are numbers from the beginning and become
 * larger than 2^31.
 */
export function keepExample(example: object): void {
  examples.push(example);
}
