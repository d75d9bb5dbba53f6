/** One thing that was looked at, and how it is. */
export interface DoctorCheck {
  /** What was looked at, as 'addon', 'gpu' or 'onnxruntime-node'. */
  name: string;
  /**
   * 'ok': it is there and works. 'missing': it is not there, and what does not need it works. 'broken': it is there,
   * or has to be, and does not work.
   */
  state: 'ok' | 'missing' | 'broken';
  /** What was found. */
  detail: string;
  /** What to do, for what is not ok, and for what is ok and could be better. */
  remedy?: string;
}

export function check(state: DoctorCheck['state'], name: string, detail: string, remedy?: string): DoctorCheck {
  return { name, state, detail, ...(remedy && { remedy }) };
}

export function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
