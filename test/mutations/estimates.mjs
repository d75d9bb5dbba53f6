// What loads will take.
export default [
  {
    name: 'a-window-is-of-so-many-batches',
    file: 'src/loaders/stream-estimate.ts',
    find: 'held.make(batch + window);\n      }',
    replace: 'held.make(batch + window - 1);\n      }',
    jest: 'test/estimates.test.ts',
    title: 'holds what was estimated, and no more',
  },
  {
    name: 'what-was-given-is-held-until-its-allocation-ends',
    file: 'src/loaders/stream-estimate.ts',
    find: 'if (lastItems[allocation] === item)',
    replace: 'if (lastItems[allocation] !== item)',
    jest: 'test/estimates.test.ts',
    title: 'on several devices, of each',
  },
  {
    name: 'copies-count-on-their-own-device',
    file: 'src/loaders/stream-estimate.ts',
    find: 'parts[plan.allocationDevices?.[plan.allocations[item]!] ?? 0]!',
    replace: 'parts[0]!',
    jest: 'test/estimates.test.ts',
    title: 'all is loaded, and parts are copied out of it',
  },
];
