/** The short form of `storm.quiet.test.ts`: one storm, judged by the middle one of the calls in it. */
import { afterAll, describe, expect, it } from 'vitest';
import { embeddedBackend } from './stage.ts';
import { describeStorm, measureStorm } from './storm/run.ts';

describe('a storm of sign-ins', () => {
  const backend = embeddedBackend();
  afterAll(() => backend.stop());

  it('is no reason to make the calls of devices wait, nor to refuse them', async () => {
    const result = await measureStorm(backend, { program: 'sign-ins.ts', order: { count: 24 }, rounds: 1, isWarm: false });
    process.stdout.write(describeStorm(result));
    expect(result.calls).toEqual([200]);
    const [{ quiet, storm }] = result.rounds as [(typeof result.rounds)[number]];
    expect(storm.p50Ms - quiet.p50Ms).toBeLessThan(50);
    // As many as that wait in line, and all of them come in.
    expect(result.said).toEqual([{ 'sign-ins': { 200: 24 } }]);
  }, 120_000);
});
