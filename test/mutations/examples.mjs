// Objects that are kept for what V8 has compiled for their class.
const test = { jest: 'test/examples-kept.test.ts', title: 'there are examples with the layout of those of a load' };

export default [
  {
    name: 'the-example-of-a-plan-is-made-as-plans-are',
    file: 'src/transfer/plan.ts',
    find: '{ ...packedItems(0), inputs: [], converts: false }',
    replace: '{ inputs: [], ...packedItems(0), converts: false }',
    ...test,
  },
  {
    name: 'an-example-of-a-load-is-kept',
    file: 'src/transfer/engine-load.ts',
    find: "keepExample(new EngineLoad({} as NativeEngine, {} as Handle, plan, new Uint32Array(), Device.parse('cpu')))",
    replace: 'void keepExample',
    ...test,
  },
];
