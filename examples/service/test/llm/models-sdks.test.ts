/** What a program sees that calls a model which it may not use: the official SDKs, current and the major before, in all dialects. */
import { afterEach, describe, expect, it } from 'vitest';
import { given, SUBJECTS } from './sdk-subjects.ts';

const closers: (() => Promise<unknown>)[] = [];
afterEach(async () => {
  for (const close of closers.splice(0).toReversed()) await close();
});

describe.each(SUBJECTS)('$title', (subject) => {
  it('raises at a model that is not listed, does not ask again, and the provider hears of none of it', async () => {
    let calls = 0;
    let lists: readonly (readonly string[])[] = [];
    const { stage } = await given(
      subject.provider,
      (_, response) => {
        calls += 1;
        response.writeHead(200, { 'content-type': 'application/json' }).end(JSON.stringify(subject.body));
      },
      closers,
      { modelLists: () => lists },
    );
    const every = ['*'];
    for (const refusing of [[['other']], [every, ['other']], [['other'], every], [[]]]) {
      lists = refusing;
      stage.events.length = 0;
      const error = await subject.plain(stage, { maxRetries: 3 }).then(
        () => null,
        (raised: unknown) => raised as Error & { readonly status: number },
      );
      expect(error?.status).toBe(403);
      expect(error!.message).toContain('is held to a list of models');
      // One: whoever had asked again would have been refused again.
      expect(stage.events).toMatchObject([{ type: 'refused', code: 'model_not_allowed', status: 403 }]);
    }
    expect(calls).toBe(0);
    // What a real SDK writes can be read.
    lists = [every, ['m', 'my-deployment', 'gemini*']];
    expect(await subject.plain(stage)).toBe('Hello there!');
    expect(calls).toBe(1);
  });
});
