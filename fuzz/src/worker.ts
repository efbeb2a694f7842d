/** One thread of a run: takes ranges of inputs from `main.ts`, and answers each with its counts. */
import { parentPort, workerData } from 'node:worker_threads';
import { run } from './parser.ts';
import { PARSERS } from './parsers.ts';

/** What a thread is given once. */
export interface Given {
  readonly seed: number;
  /** Holds the number of the input that is being tried: where a parser never ends, nobody else could say. */
  readonly at: SharedArrayBuffer;
}

export interface Range {
  readonly parser: string;
  readonly from: number;
  readonly to: number;
}

const { seed, at } = workerData as Given;
const place = new Uint32Array(at);
const port = parentPort!;

port.on('message', ({ parser: name, from, to }: Range) => {
  const parser = PARSERS.find((each) => each.name === name)!;
  void run(parser, seed, from, to, (index) => (place[0] = index)).then((counts) => port.postMessage(counts));
});
