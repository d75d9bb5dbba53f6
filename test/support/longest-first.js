const { statSync } = require('node:fs');
const { default: Sequencer } = require('@jest/test-sequencer');

const SHORT = 1024; // bytes

/**
 * As jest by itself, which on a new clone takes size for length: the largest file first. But those that only call tests
 * of test/support, the shortest of all, are among the longest to run: one of them would run alone at the end.
 */
module.exports = class extends Sequencer {
  sort(tests) {
    const sorted = super.sort(tests);
    const isFirst = ({ path, duration }) => duration === undefined && statSync(path).size < SHORT;
    return [...sorted.filter(isFirst), ...sorted.filter((test) => !isFirst(test))];
  }
};
