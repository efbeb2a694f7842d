/** Which models a call names, and what must name none: everything that two readers could read differently. */
import * as fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { utf8 } from '@keyguard/core/bytes';
import { formFields } from '../../src/llm/form-fields.ts';
import { topMembers } from '../../src/llm/json-members.ts';
import { allowsModel, modelPatterns } from '../../src/llm/model-patterns.ts';
import { PROVIDERS } from '../../src/llm/providers.ts';
import type { CallModels } from '../../src/llm/models.ts';

const JSON_TYPE = 'application/json';

function modelsOf(provider: string, rest: string, body: string | Uint8Array = '', { method = 'POST', query = '', contentType = JSON_TYPE as string | null } = {}): CallModels {
  const bytes = typeof body === 'string' ? utf8(body) : new Uint8Array(body);
  return PROVIDERS.find(({ name }) => name === provider)!.models(rest, { method, query, contentType, body: bytes });
}
const named = (...names: string[]): CallModels => ({ kind: 'named', names });

/** A form as the SDKs write one. */
function form(fields: readonly (readonly [disposition: string, value: string])[], { end = '--b0--\r\n' } = {}): string {
  return fields.map(([disposition, value]) => `--b0\r\nContent-Disposition: form-data; ${disposition}\r\n\r\n${value}\r\n`).join('') + end;
}
const FORM = { contentType: 'multipart/form-data; boundary=b0' };
const FILE = ['name="file"; filename="a.wav"', 'bytes'] as const;

describe('the model of a call', () => {
  it.each([
    ['openai', 'chat/completions', '{"model":"gpt-4o","messages":[]}', named('gpt-4o')],
    ['openai', 'responses', '{"input":"x","model":"gpt-4o","tools":[{"type":"image_generation","model":"gpt-image-1"}]}', named('gpt-4o', 'gpt-image-1')],
    ['openai', 'responses', '{"model":"a","tools":[{"type":"web_search"},{"model":"b","type":"image_generation"}]}', named('a', 'b')],
    ['openai', 'embeddings', ' { "model" : "m\\u00fcller" } ', named('m\u00fcller')],
    ['anthropic', 'v1/messages', '{"model":"claude-x","messages":[{"role":"user","content":[{"type":"tool_use","input":{"model":"of the content"}}]}]}', named('claude-x')],
    ['google', 'v1beta/models/gemini-x:streamGenerateContent', '{"contents":[]}', named('gemini-x')],
    ['google', 'v1beta/tunedModels/mine:generateContent', '{"contents":[]}', named('tunedModels/mine')],
    ['google', 'v1beta/models/a:batchEmbedContents', '{"requests":[{"model":"models/b"},{"model":"models/a"}]}', named('a', 'b', 'a')],
    ['google', 'v1beta/models/a:countTokens', '{"generateContentRequest":{"model":"models/c"}}', named('a', 'c')],
    ['azure', 'openai/deployments/mine/chat/completions', '{"model":"whatever","messages":[]}', named('mine')],
    ['azure', 'openai/v1/responses', '{"model":"deployed"}', named('deployed')],
  ] as const)('of %s at %s is what its dialect says', (provider, rest, body, expected) => {
    expect(modelsOf(provider, rest, body)).toEqual(expected);
  });

  it('of a form is in a field', () => {
    expect(modelsOf('openai', 'audio/transcriptions', form([FILE, ['name="model"', 'whisper-1']]), FORM)).toEqual(named('whisper-1'));
    expect(modelsOf('openai', 'images/edits', form([['name="model"', 'gpt-image-1'], FILE, ['name="image[]"; filename="b.png"', '\n--b\n']]), FORM)).toEqual(named('gpt-image-1'));
  });

  it.each([
    ['openai', 'models'], ['openai', 'models/gpt-4o'], ['anthropic', 'v1/models'], ['google', 'v1beta/models'], ['google', 'v1beta/models/gemini-x'], ['azure', 'openai/models'],
  ])('is none where %s is asked for %s', (provider, rest) => {
    expect(modelsOf(provider, rest, '', { method: 'GET', contentType: null }).kind).toBe('none');
  });

  it.each([
    ['openai', 'batches'], ['openai', 'files'], ['openai', 'fine_tuning/jobs'], ['openai', 'threads/t/runs'], ['openai', 'assistants'], ['openai', 'responses/r'], ['openai', 'responses/r/cancel'],
    ['openai', 'chat/completions/'], ['openai', 'evals'], ['openai', 'realtime/sessions'], ['openai', 'videos'], ['anthropic', 'v1/messages/batches'], ['google', 'v1beta/openai/chat/completions'],
    ['google', 'v1beta/models/m:batchGenerateContent'], ['google', 'v1beta/cachedContents'], ['google', 'v1beta/interactions'], ['google', 'v1beta/models'],
    ['azure', 'openai/deployments/mine/extensions/chat/completions'], ['azure', 'openai/assistants'], ['azure', 'openai/v1/batches'],
  ])('of %s at %s is named elsewhere, whatever the body says', (provider, rest) => {
    expect(modelsOf(provider, rest, '{"model":"gpt-4o"}').kind).toBe('elsewhere');
  });

  const doubted: [string, string | Uint8Array, (string | null)?][] = [
    ['twice', '{"model":"a","model":"b"}'],
    ['twice the same', '{"model":"a","model":"a"}'],
    ['twice, once escaped', '{"model":"a","mod\\u0065l":"b"}'],
    ['twice, in another case', '{"model":"a","Model":"b"}'],
    ['in wide letters beside it', '{"model":"a","\uff4dodel":"b"}'],
    ['in another case alone', '{"MODEL":"a"}'],
    ['in no text', '{"model":["a"]}'],
    ['in nothing', '{"model":null}'],
    ['in an empty text', '{"model":""}'],
    ['not at all', '{"messages":[]}'],
    ['deeper alone', '{"x":{"model":"a"}}'],
    ['by inheritance', '{"__proto__":{"model":"a"}}'],
    ['with further ones to fall back on', '{"model":"a","models":["b"]}'],
    ['with fallbacks', '{"model":"a","fallbacks":[{"model":"b"}]}'],
    ['beside a source of data with one of its own', '{"model":"a","data_sources":[]}'],
    ['with two lists of tools', '{"model":"a","tools":[],"tool\u017f":[{"model":"b"}]}'],
    ['with a tool of another case', '{"model":"a","tools":[{"Model":"b"}]}'],
    ['with a tool that draws with a model of the provider’s choice', '{"model":"a","tools":[{"type":"image_generation"}]}'],
    ['with such a tool before something else that names one', '{"model":"a","tools":[{"type":"image_generation"}],"requests":{"model":"a"}}'],
    ['with such a tool beside another that names one', '{"model":"a","tools":[{"type":"image_\\u0067eneration"},{"type":"x","model":"a"}]}'],
    ['after a byte order mark', '\ufeff{"model":"a"}'],
    ['in UTF-16', Buffer.from('{"model":"a"}', 'utf16le')],
    ['in bytes that are no UTF-8', Buffer.from([...Buffer.from('{"model":"a'), 0xff, ...Buffer.from('"}')])],
    ['in a list', '[{"model":"a"}]'],
    ['with a comma too many', '{"model":"a",}'],
    ['with a comment', '{"model":"a"/*,"model":"b"*/}'],
    ['before more', '{"model":"a"}{"model":"b"}'],
    ['in another character set', '{"model":"a"}', 'application/json; charset=utf-7'],
    ['as another type', '{"model":"a"}', 'text/plain'],
    ['as no type', '{"model":"a"}', null],
    ['in a form in JSON', '{"model":"a"}', FORM.contentType],
  ];
  it.each(doubted)('named %s is unclear', (_title, body: string | Uint8Array, contentType: string | null = JSON_TYPE) => {
    expect(modelsOf('openai', 'chat/completions', body, { contentType }).kind).toBe('unclear');
  });

  const plain = [['name="model"', 'a']] as const;
  it.each([
    ['twice', form([...plain, ...plain])],
    ['twice, in another case', form([...plain, ['name="Model"', 'b']])],
    ['as a list', form([['name="model[]"', 'a']])],
    ['as a file', form([['name="model"; filename="x"', 'a']])],
    ['without quotes', form([['name=model', 'a']])],
    ['twice in one head', form([['name="model"; name="x"', 'a']])],
    ['by an extended name', form([['name="x"; name*=utf-8\'\'model', 'a']])],
    ['escaped', form([...plain, ['name="mod\\el"', 'b']])],
    ['in percents', form([...plain, ['name="mod%65l"', 'b']])],
    ['with a type of its own', form([['name="model"\r\nContent-Type: text/plain; charset=utf-16', 'a']])],
    ['with an encoding', form([['name="model"\r\nContent-Transfer-Encoding: base64', 'YQ==']])],
    ['behind what comes before', `x\r\n${form(plain)}`],
    ['before what comes after', `${form(plain)}x`],
    ['before an end that is none', form(plain, { end: '' })],
    ['and again behind a line feed alone', form([...plain, ['name="file"; filename="x"', 'x\n--b0\nContent-Disposition: form-data; name="model"\n\nb']])],
    ['only behind a line feed alone', form([['name="file"; filename="x"', 'x\n--b0\r\nContent-Disposition: form-data; name="model"\r\n\r\nb']])],
    ['and again behind a boundary that goes on', form([...plain, ['name="file"; filename="x"', 'x\r\n--b0 \r\nContent-Disposition: form-data; name="model"\r\n\r\nb']])],
    ['beside a boundary without its dashes', form([...plain, ['name="file"; filename="x"', 'x\r\n-b0']])],
    ['beside a name within quotes', form([...plain, ['name="x; name=model"', 'b']])],
    ['beside a name in the name of a file', form([...plain, ['name="file"; filename="x; name=model"', 'b']])],
    ['beside another behind a byte order mark', form([...plain, ['name="\ufeffmodel"', 'b']])],
    ['with a folded head', form([['name="x";\r\n name="model"', 'a']])],
  ])('in a form named %s is unclear', (_title, body) => {
    expect(modelsOf('openai', 'audio/transcriptions', body, FORM).kind).toBe('unclear');
  });

  it.each(['multipart/form-data', 'multipart/form-data; boundary=b0; boundary=b1', 'multipart/form-data; boundary=b0; charset=x', 'multipart/mixed; boundary=b0'])('in a form of the type %s is unclear', (contentType) => {
    expect(modelsOf('openai', 'audio/transcriptions', form(plain), { contentType }).kind).toBe('unclear');
  });

  it('in the path of Google is unclear where the query or an escape could name another', () => {
    for (const query of ['model=b', 'x=1&%6dodel=b', 'generateContentRequest.model=b']) expect(modelsOf('google', 'v1beta/models/a:generateContent', '{}', { query }).kind, query).toBe('unclear');
    expect(modelsOf('google', 'v1beta/models/%61:generateContent', '{}').kind).toBe('unclear');
    expect(modelsOf('google', 'v1beta/models/a:generateContent', '{"model":"models/b"}')).toEqual(named('a', 'b'));
  });
});

describe('topMembers', () => {
  it('finds each member as often as it is written, wherever quotes, braces and colons stand in texts', () => {
    const name = fc.oneof(fc.string({ unit: 'grapheme' }), fc.constantFrom('model', '\\', '"', '{', '":', '\u2028', '__proto__'));
    const members = fc.array(fc.tuple(name, fc.jsonValue({ depthSize: 'small' })), { maxLength: 8 });
    const gap = fc.constantFrom('', ' ', '\n\t ');
    fc.assert(
      fc.property(members, gap, (written, space) => {
        const json = `{${written.map(([key, value]) => `${space}${JSON.stringify(key)}${space}:${space}${JSON.stringify(value)}${space}`).join(',')}}`;
        const found = topMembers(utf8(json), () => false);
        expect(found).toEqual(written.map(([key, value]) => ({ name: key, text: typeof value === 'string' ? value : null, holder: null, part: 0 })));
      }),
    );
  });

  it('takes time in proportion to the length, however much is escaped or nested', () => {
    const mebibyte = 1024 * 1024;
    for (const json of [`{"a":"${'\\\\'.repeat(mebibyte)}"}`, `{"a":"${'\\"'.repeat(mebibyte)}"}`, `{${'"a":1,'.repeat(mebibyte / 4)}"b":2}`]) {
      const begun = performance.now();
      expect(topMembers(utf8(json), () => true)).not.toBeNull();
      // A quadratic one would take hours.
      expect(performance.now() - begun).toBeLessThan(5000);
    }
  });
});

describe('formFields', () => {
  it('reads what the form of the runtime writes', async () => {
    const data = new FormData();
    data.append('model', 'whisper-1');
    data.append('file', new Blob([new Uint8Array([0, 13, 10, 45, 45])]), 'a b.wav');
    const written = new Response(data);
    const boundary = /boundary=(.*)$/.exec(written.headers.get('content-type')!)![1]!;
    expect(formFields(new Uint8Array(await written.arrayBuffer()), boundary)).toEqual([{ name: 'model', text: 'whisper-1' }, { name: 'file', text: null }]);
  });
});

describe('patterns of models', () => {
  it.each([
    [['gpt-4o'], 'gpt-4o', true], [['gpt-4o'], 'gpt-4o-mini', false], [['gpt-4o'], 'GPT-4o', false], [['gpt-4o*'], 'gpt-4o-mini', true],
    [['gpt-4o*'], 'gpt-4', false], [['*'], 'anything', true], [[], 'gpt-4o', false], [['a', 'b*'], 'bc', true], [['a.c'], 'abc', false],
  ])('%j lets %s through: %s', (patterns, model, expected) => {
    expect(allowsModel(patterns, model)).toBe(expected);
  });

  it.each(['', 'a b', '*a', 'a*b', 'a**', 'm\u00fc', 'a'.repeat(201)])('are not of the form %j', (pattern) => {
    expect(modelPatterns.safeParse([pattern]).success).toBe(false);
  });
});
