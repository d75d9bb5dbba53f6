import { FastSafetensorsError } from 'fastsafetensors-node';

/** The error of a call that has to be refused as INVALID_ARGUMENT, a TypeError. */
export async function refused(call: () => unknown): Promise<Error & { code: string }> {
  try {
    await call();
  } catch (error) {
    expect(error).toBeInstanceOf(TypeError);
    expect(error).toBeInstanceOf(FastSafetensorsError);
    expect(error).toMatchObject({ code: 'INVALID_ARGUMENT' });
    return error as Error & { code: string };
  }
  throw new Error('it was accepted');
}
