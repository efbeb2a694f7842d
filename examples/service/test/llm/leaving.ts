/** Clients that leave in the middle of a call, and an upstream that notices. */
import http, { type IncomingMessage, type ServerResponse } from 'node:http';
import { chunkEvent, connections, SSE, startStage, startUpstream, until, type FakeUpstream, type Stage } from './stage.ts';

/** When a client leaves: before the answer's head, in the middle of a stream, in the middle of an answer that is none. */
export type Window = 'before-headers' | 'mid-stream' | 'non-stream';

export const WINDOWS: readonly Window[] = ['before-headers', 'mid-stream', 'non-stream'];

export interface Leaving {
  readonly fake: FakeUpstream;
  readonly stage: Stage;
  /** When the upstream has the request of that number, and when it has lost it: milliseconds of the monotonic clock. */
  arrival(id: string): Promise<number>;
  loss(id: string): Promise<number>;
  call(window: Window, id: string): Promise<http.ClientRequest>;
  /** Resolves once nothing is left of any call, and each that was begun has its ending on record. */
  nothingLeft(): Promise<void>;
  close(): Promise<void>;
}

function begin(window: Window, response: ServerResponse): void {
  if (window === 'mid-stream') response.writeHead(200, SSE).write(chunkEvent('a'));
  else if (window === 'non-stream') response.writeHead(200, { 'content-type': 'application/json', 'content-length': 1000 }).write('{"half":');
}

/** Resolves once the client is inside its window. */
export async function inside(window: Window, request: http.ClientRequest, arrival: Promise<number>): Promise<void> {
  if (window === 'before-headers') {
    await arrival;
    return;
  }
  const response = await new Promise<IncomingMessage>((resolve) => request.once('response', resolve));
  await new Promise((resolve) => response.on('error', () => {}).once('data', resolve));
}

export async function startLeaving(): Promise<Leaving> {
  const arrived = new Map<string, () => void>();
  const aborted = new Map<string, () => void>();
  const event = (of: Map<string, () => void>, id: string): Promise<number> => new Promise((resolve) => of.set(id, () => resolve(performance.now())));
  const fake = await startUpstream((request, response) => {
    const [, , window, id] = request.url!.split('/') as [string, string, Window, string];
    response.once('close', () => aborted.get(id)?.());
    begin(window, response);
    arrived.get(id)?.();
  });
  const stage = await startStage({ upstream: fake.upstream });
  const callIds = (wanted: string): string[] => stage.events.filter(({ type }) => type === wanted).map(({ callId }) => callId).toSorted();
  return {
    fake,
    stage,
    arrival: (id) => event(arrived, id),
    loss: (id) => event(aborted, id),
    async call(window, id) {
      const bytes = await stage.signedBytes({ target: `/proxy/openai/v1/${window}/${id}`, body: '{}' });
      const [head] = bytes.toString('latin1').split('\r\n\r\n', 1);
      const headers = Object.fromEntries(head!.split('\r\n').slice(1).map((line) => line.split(': ', 2) as [string, string]));
      const request = http.request({ host: '127.0.0.1', port: stage.port, method: 'POST', path: `/proxy/openai/v1/${window}/${id}`, headers, agent: false });
      request.on('error', () => {}).end('{}');
      return request;
    },
    async nothingLeft() {
      await until(async () => (await connections(stage.server)) === 0);
      await until(async () => (await connections(fake.server)) === 0);
      await until(() => Object.values(stage.proxy.usage()).every((number) => number === 0));
      if (callIds('started').join() !== callIds('ended').join()) throw new Error('A call that was begun has no ending on record.');
    },
    async close() {
      await stage.close();
      await fake.close();
    },
  };
}
