/**
 * The provider, in a process of its own: answers as OpenAI does, a whole answer of one KiB at once or a paced stream of events, to
 * whoever brings the right key.
 */
import { createServer, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { EVENTS, EVENT_EVERY_MS, FIRST_EVENT_AFTER_MS, PROVIDER_KEY } from './proxy-task.ts';

const chunk = (delta: object, rest: object = {}): string =>
  `data: ${JSON.stringify({ id: 'chatcmpl-bench', object: 'chat.completion.chunk', created: 1, model: 'gpt-5', choices: [{ index: 0, delta, finish_reason: null }], ...rest })}\n\n`;
const LAST_WORDS = `${chunk({}, { choices: [], usage: { prompt_tokens: 200, completion_tokens: EVENTS, total_tokens: 200 + EVENTS } })}data: [DONE]\n\n`;

const ANSWER = ((): string => {
  const envelope = (content: string): string =>
    JSON.stringify({
      id: 'chatcmpl-bench',
      object: 'chat.completion',
      created: 1,
      model: 'gpt-5',
      choices: [{ index: 0, message: { role: 'assistant', content }, finish_reason: 'stop' }],
      usage: { prompt_tokens: 200, completion_tokens: 150, total_tokens: 350 },
    });
  return envelope('x'.repeat(1024 - envelope('').length));
})();

function stream(response: ServerResponse): void {
  response.writeHead(200, { 'content-type': 'text/event-stream' });
  response.flushHeaders();
  let sent = 0;
  const send = (): void => {
    sent += 1;
    response.write(chunk({ content: `word ${sent} ` }));
    if (sent < EVENTS) setTimeout(send, EVENT_EVERY_MS);
    else response.end(LAST_WORDS);
  };
  setTimeout(send, FIRST_EVENT_AFTER_MS);
}

const server = createServer({ keepAliveTimeout: 600_000 }, (request, response) => {
  const chunks: Buffer[] = [];
  request.on('data', (bytes: Buffer) => chunks.push(bytes));
  request.on('end', () => {
    const isKnown = request.headers.authorization === `Bearer ${PROVIDER_KEY}` && request.url === '/v1/chat/completions';
    // It is at the body's end in what the load sends; a gateway may write the body anew.
    if (!isKnown) response.writeHead(401, { 'content-type': 'application/json' }).end('{"error":{"message":"no such key or path"}}');
    else if (Buffer.concat(chunks).includes('"stream":true')) stream(response);
    else response.writeHead(200, { 'content-type': 'application/json', 'content-length': ANSWER.length }).end(ANSWER);
  });
});
server.listen(0, '127.0.0.1', () => process.send!((server.address() as AddressInfo).port));
process.on('disconnect', () => process.exit());
