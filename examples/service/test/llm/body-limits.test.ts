/** Which bodies are read at all: by the route, before a byte of them is. */
import { once } from 'node:events';
import net from 'node:net';
import { describe, expect, it } from 'vitest';
import { bodyLimits } from '../../src/llm/body-limits.ts';
import { startStage, startUpstream } from './stage.ts';

const MEBIBYTE = 1024 * 1024;
const SMALL = 10 * MEBIBYTE;
const CALL = 32 * MEBIBYTE;
const UPLOAD = 64 * MEBIBYTE;
const FORM = 'multipart/form-data; boundary=x';
const JSON_TYPE = 'application/json';

describe('how large a body may be', () => {
  it.each([
    ['/proxy/openai/v1/chat/completions', JSON_TYPE, CALL],
    ['/v1/chat/completions', JSON_TYPE, CALL],
    ['/proxy/openai/v1/responses', JSON_TYPE, CALL],
    ['/proxy/openai/v1/embeddings', JSON_TYPE, SMALL],
    ['/proxy/openai/v1/moderations', JSON_TYPE, SMALL],
    ['/proxy/openai/v1/models/m', null, SMALL],
    ['/proxy/openai/v1/files', FORM, UPLOAD],
    ['/proxy/openai/v1/files', 'MULTIPART/Form-Data;boundary=x', UPLOAD],
    ['/proxy/openai/v1/files', JSON_TYPE, CALL],
    ['/proxy/openai/v1/files', 'multipart/form-data-else', CALL],
    ['/proxy/openai/v1/audio/transcriptions', FORM, UPLOAD],
    ['/proxy/openai/v1/images/edits', FORM, UPLOAD],
    // A form is not what makes a body an upload.
    ['/proxy/openai/v1/chat/completions', FORM, CALL],
    ['/proxy/openai/v1/embeddings', FORM, SMALL],
    ['/proxy/anthropic/v1/messages', JSON_TYPE, CALL],
    ['/proxy/anthropic/v1/files', FORM, UPLOAD],
    ['/proxy/anthropic/v1/models', null, SMALL],
    ['/proxy/google/v1beta/models/m:generateContent', JSON_TYPE, CALL],
    ['/proxy/google/v1beta/models/m:embedContent', JSON_TYPE, SMALL],
    ['/proxy/google/v1beta/models', null, SMALL],
    ['/proxy/azure/openai/deployments/d/chat/completions', JSON_TYPE, CALL],
    ['/proxy/azure/openai/deployments/d/embeddings', JSON_TYPE, SMALL],
    ['/proxy/azure/openai/deployments/d/audio/transcriptions', FORM, UPLOAD],
    ['/proxy/azure/openai/files', FORM, UPLOAD],
    ['/proxy/azure/openai/v1/files', FORM, UPLOAD],
    ['/proxy/nobody/v1/files', FORM, SMALL],
    ['/v1/files', FORM, SMALL],
  ])('%s of %s: %i bytes', (path, contentType, bytes) => {
    expect(bodyLimits(UPLOAD)({ path, contentType })).toBe(bytes);
  });

  it('follows the operator for uploads alone', () => {
    const limit = bodyLimits(MEBIBYTE);
    expect(limit({ path: '/proxy/openai/v1/files', contentType: FORM })).toBe(MEBIBYTE);
    expect(limit({ path: '/proxy/openai/v1/responses', contentType: JSON_TYPE })).toBe(CALL);
  });
});

describe('a body that is too large', () => {
  it('is refused in the dialect before it has come, and nothing is sent to the provider', async () => {
    const fake = await startUpstream((_, response) => void response.end('{}'));
    const stage = await startStage({ upstream: fake.upstream, maxUploadBytes: MEBIBYTE });
    const cases = [
      ['/proxy/openai/v1/files', FORM, MEBIBYTE + 1, '"error":{'],
      ['/proxy/openai/v1/embeddings', JSON_TYPE, SMALL + 1, '"error":{'],
      ['/proxy/openai/v1/responses', JSON_TYPE, CALL + 1, '"error":{'],
      ['/proxy/anthropic/v1/messages', JSON_TYPE, CALL + 1, '"request_too_large"'],
    ] as const;
    for (const [target, contentType, length, dialect] of cases) {
      const head = (await stage.signedBytes({ target, contentType })).toString('latin1').replace('\r\n\r\n', `\r\ncontent-length: ${length}\r\n\r\n`);
      const socket = net.connect(stage.port, '127.0.0.1');
      const chunks: Buffer[] = [];
      socket.on('data', (chunk) => chunks.push(chunk)).on('error', () => {});
      // The head alone: were the body waited for, there would be no answer.
      socket.write(head);
      await once(socket, 'close');
      const answer = Buffer.concat(chunks).toString();
      expect(answer).toMatch(/^HTTP\/1\.1 413 /);
      expect(answer).toContain('body_too_large');
      expect(answer).toContain(dialect);
    }
    expect(fake.requests).toHaveLength(0);
    // The control: the same route takes what is within its limit.
    const body = `--x\r\nContent-Disposition: form-data; name="purpose"\r\n\r\n${'y'.repeat(MEBIBYTE / 2)}\r\n--x--\r\n`;
    expect(await stage.send({ target: '/proxy/openai/v1/files', contentType: FORM, body })).toMatch(/^HTTP\/1\.1 200 /);
    expect(fake.requests).toHaveLength(1);
    await stage.close();
    await fake.close();
  });
});
