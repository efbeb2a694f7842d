import { describe, expect, it } from 'vitest';
import { openai } from '../../src/llm/openai.ts';
import { dialectOf, findRoute, PROVIDERS, upstreamOf } from '../../src/llm/providers.ts';
import { openaiUpstream } from './stage.ts';

describe('openaiUpstream', () => {
  it('is the provider itself by default', () => {
    expect(openaiUpstream()).toMatchObject({ secure: true, hostname: 'api.openai.com', port: 443, authority: 'api.openai.com', basePath: '/v1' });
  });

  it.each([
    ['http://127.0.0.1:8080/v1', { secure: false, hostname: '127.0.0.1', port: 8080, basePath: '/v1' }],
    ['http://localhost/v1/', { secure: false, hostname: 'localhost', port: 80, basePath: '/v1' }],
    ['http://[::1]:9/v1', { hostname: '::1', authority: '[::1]:9', port: 9 }],
    ['https://gateway.example.com:8443/team/openai/v1', { hostname: 'gateway.example.com', authority: 'gateway.example.com:8443', basePath: '/team/openai/v1' }],
  ])('accepts %s', (baseUrl, upstream) => {
    expect(openaiUpstream(baseUrl)).toMatchObject(upstream);
  });

  it.each([
    ['nonsense'],
    ['http://api.openai.com/v1'],
    ['http://127.0.0.1.example.com/v1'],
    ['http://localhost.example.com/v1'],
    ['http://10.0.0.1/v1'],
    ['ftp://127.0.0.1/v1'],
    ['https://user:pass@api.openai.com/v1'],
    ['https://api.openai.com/v1?x=1'],
    ['https://api.openai.com/v1#x'],
    ['https://api.openai.com'],
    ['https://api.openai.com/v2'],
    ['https://api.openai.com//v1'],
    ['https://api.openai.com/%2e%2e%2f/v1'],
  ])('refuses %s', (baseUrl) => {
    expect(() => openaiUpstream(baseUrl)).toThrow(expect.objectContaining({ code: 'invalid_option', message: expect.stringContaining('OPENAI_BASE_URL') }));
  });
});

describe('findRoute', () => {
  it.each([
    ['/proxy/openai/v1/chat/completions', 'chat/completions'],
    ['/proxy/openai/v1/models/a:b@c', 'models/a:b@c'],
    ['/proxy/openai/v1/files/', 'files/'],
    ['/v1/chat/completions', 'chat/completions'],
  ])('%s', (path, rest) => {
    expect(findRoute(path)).toEqual({ provider: openai, rest });
  });

  it.each([
    ['/proxy/anthropic/v1/messages', 'anthropic', null],
    ['/proxy/anthropic/v2/messages', 'anthropic', 'route_unknown'],
    ['/proxy/anthropic/messages', 'anthropic', 'route_unknown'],
    ['/proxy/google/v1beta/models/m:generateContent', 'google', null],
    ['/proxy/google/v1alpha/models/m:embedContent', 'google', null],
    ['/proxy/google/upload/v1beta/files', 'google', 'upload_unsupported'],
    ['/proxy/google/batch', 'google', 'route_unknown'],
    ['/proxy/azure/openai/deployments/d/chat/completions', 'azure', null],
    ['/proxy/azure/openai/v1/responses', 'azure', null],
    ['/proxy/azure/openai/', 'azure', 'route_unknown'],
    ['/proxy/azure/metadata/identity', 'azure', 'route_unknown'],
  ])('%s goes to %s: %s', (path, name, refusal) => {
    const route = findRoute(path)!;
    expect([route.provider.name, route.provider.refusal(route.rest, '')]).toEqual([name, refusal]);
  });

  it.each([
    '/',
    '/proxy/openai/v1',
    '/proxy/openai/v1/',
    '/proxy/openai/v1.evil/x',
    '/proxy/openai/v2/x',
    '/Proxy/openai/v1/models',
    '/proxy/OpenAI/v1/models',
    '/proxy/openai/V1/models',
    '/x/proxy/openai/v1/models',
    '/v1/chat/completions/',
    '/v1/Chat/completions',
    '/v1/models',
    '/proxy/constructor/v1/x',
    '/__proto__',
  ])('%s is none', (path) => {
    expect(findRoute(path)).toBeNull();
  });

  it('answers a mistaken path in the dialect whose prefix it bears', () => {
    expect(dialectOf('/proxy/openai/v1')).toBe(openai);
    expect(dialectOf('/proxy/openai/v1/')).toBe(openai);
    expect(dialectOf('/v1/chat/completions')).toBe(openai);
    expect(dialectOf('/proxy/other/v1/x')).toBeNull();
  });
});

describe('a query', () => {
  const provider = (name: string): (typeof PROVIDERS)[number] => PROVIDERS.find((one) => one.name === name)!;

  it.each([
    ['google', 'alt=sse&key=AIza', 'alt=sse'],
    ['google', 'key=AIza', ''],
    ['google', '%6Bey=AIza&alt=sse', 'alt=sse'],
    ['google', 'KEY=AIza&access_token=t&$oauth_token=u&pageSize=5', 'pageSize=5'],
    ['google', 'keyword=x&alt=sse', 'keyword=x&alt=sse'],
    ['azure', 'api-version=2025-04-01&api-key=k', 'api-version=2025-04-01'],
    ['azure', 'subscription-key=k&api-version=1', 'api-version=1'],
    ['openai', 'limit=1&after=x', 'limit=1&after=x'],
    ['anthropic', 'beta=true', 'beta=true'],
  ])('of %s: %s is handed on as %s', (name, query, handedOn) => {
    expect(provider(name).query(query)).toBe(handedOn);
  });

  it.each(['$httpMethod=DELETE', '%24httpMethod=DELETE', 'x-http-method-override=DELETE', '$.http=1&$httpHeaders=x', 'alt-method=GET'])('that would make it another call is refused: %s', (query) => {
    expect(provider('google').refusal('v1beta/models', query)).toBe('method_not_allowed');
  });
});

describe('upstreamOf', () => {
  it.each(PROVIDERS)('$name: what the operator names, or its own', (provider) => {
    expect(upstreamOf(provider)?.secure).toBe(provider.defaultBaseUrl === null ? undefined : true);
    const { authority } = upstreamOf(provider, `https://gateway.example.com${provider.baseUrlSuffix}`)!;
    expect(authority).toBe('gateway.example.com');
    expect(() => upstreamOf(provider, 'http://gateway.example.com')).toThrow(provider.baseUrlVariable);
  });
});
