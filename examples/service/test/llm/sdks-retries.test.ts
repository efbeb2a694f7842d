/**
 * What the official SDKs do by themselves when a call is refused for a while: they wait as they are told, and call again. All of
 * them at once, because most of it is waiting.
 */
import { afterEach, describe, expect, it } from 'vitest';
import { memoryReplayStore } from '@keyguard/core/memory';
import type { ReplayStore } from '@keyguard/core/seams';
import { given, SUBJECTS, type Subject } from './sdk-subjects.ts';
import type { StageOptions } from './stage.ts';

const closers: (() => Promise<unknown>)[] = [];
afterEach(async () => {
  for (const close of closers.splice(0).toReversed()) await close();
});

/** What came of one call, whose first tries are answered with these statuses by the provider. */
async function outcome(subject: Subject, statuses: readonly number[], options: Partial<StageOptions> = {}, begin = (): void => {}): Promise<object> {
  const nonces: unknown[] = [];
  const { stage, upstream } = await given(
    subject.provider,
    (_, response) => {
      const status = statuses[upstream.requests.length - 1];
      response.writeHead(status ?? 200, { 'content-type': 'application/json', 'retry-after': '0', 'retry-after-ms': '1' }).end(JSON.stringify(status === undefined ? subject.body : subject.busy));
    },
    closers,
    {
      ...options,
      clientFetch: (input, init) => {
        nonces.push(new Headers(init?.headers).get('x-keyguard-nonce'));
        return fetch(input, init);
      },
    },
  );
  begin();
  nonces.length = 0;
  const text = await subject.plain(stage);
  return { title: subject.title, text, calls: upstream.requests.length, attempts: nonces.length, nonces: new Set(nonces).size };
}

const once = (calls: number, attempts: number): object => ({ text: 'Hello there!', calls, attempts, nonces: attempts });

describe('the official SDKs', () => {
  it('repeat a call that the provider refused for a while, signed anew', async () => {
    const outcomes = await Promise.all(SUBJECTS.flatMap((subject) => [429, 500].map((status) => outcome(subject, [status]))));
    expect(outcomes).toEqual(SUBJECTS.flatMap(({ title }) => [429, 500].map(() => ({ title, ...once(2, 2) }))));
  });

  it('repeat a call that we could not judge for a moment: it had not reached the provider', async () => {
    const outcomes = await Promise.all(
      SUBJECTS.map((subject) => {
        const store = memoryReplayStore({ startedAtMs: 0 });
        let failures = 0;
        const replayStore: ReplayStore = { claim: (...claim) => (failures-- > 0 ? Promise.reject(new Error('away')) : store.claim(...claim)) };
        return outcome(subject, [], { replayStore }, () => {
          failures = 1;
        });
      }),
    );
    expect(outcomes).toEqual(SUBJECTS.map(({ title }) => ({ title, ...once(1, 2) })));
  });
});
