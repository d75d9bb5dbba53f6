/** Of a file that another one takes the place of. Types of Node.js are not among those that users need. */
export interface FileOwner {
  readonly mode: number;
  readonly uid: number;
  readonly gid: number;
}
